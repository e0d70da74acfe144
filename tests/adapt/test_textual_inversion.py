from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf
from adaptlab.adapt import materialize, textual_inversion
from tests.laws.table import MODELS, VOCABULARY, scattered

KEY = jax.random.key(0)
W = jnp.asarray(np.random.default_rng(0).normal(size=(10, 4)), jnp.float32)
ROWS = jnp.asarray(np.random.default_rng(1).normal(size=(3, 4)), jnp.float32)


@pytest.mark.parametrize("ids", [(7, 0, 3), (7, 10, 11)], ids=str)
def test_a_table_with_other_rows_reads_as_the_matrix_it_stands_for(ids: tuple[int, ...]):
    node = leaf.Rows(W, ROWS, ids)
    size = max(10, max(ids) + 1)
    full = np.zeros((size, 4), np.float32)
    full[:10] = W
    full[list(ids)] = ROWS
    np.testing.assert_array_equal(leaf.dense(node), full)
    tokens = jnp.asarray([[7, 1, 3], [9, size - 1, 0]])
    np.testing.assert_array_equal(leaf.take(node, tokens, jnp.float32), full[np.asarray(tokens)])
    rng = np.random.default_rng(2)
    x, z = (jnp.asarray(rng.normal(size=(2, 3, n)), jnp.float32) for n in (4, size))
    np.testing.assert_allclose(leaf.dot(x, node, transpose=True), x @ full.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(leaf.dot(z, node), z @ full, rtol=1e-5, atol=1e-5)


def test_rows_nest_over_other_nodes():
    below = leaf.Scaled(W, None, jnp.full(4, 2.0))
    node = leaf.Rows(below, ROWS, (7, 0, 3))
    np.testing.assert_array_equal(leaf.dense(node), (2 * W).at[jnp.asarray([7, 0, 3])].set(ROWS))
    np.testing.assert_array_equal(leaf.take(node, jnp.asarray([1, 7]), jnp.float32), jnp.stack([2 * W[1], ROWS[0]]))


def test_only_the_given_tokens_embeddings_change():
    adaptation = textual_inversion([3, 8], embedding="table")
    delta = scattered(adaptation.init(KEY, {"table": W}), 1)
    merged = np.asarray(materialize(adaptation.bind({"table": W}, delta))["table"])
    np.testing.assert_array_equal(np.flatnonzero((merged != W).any(1)), [3, 8])
    np.testing.assert_array_equal(merged[[3, 8]], delta["table"]["rows"])


@pytest.mark.parametrize("name", ["llama_tied", "llama_untied_gqa"])
def test_new_tokens_are_read_and_learnt(name: str):
    row = MODELS[name]
    base = scattered(row.model.init(KEY), 0)
    adaptation = textual_inversion(count=2, like=[5, 6])
    delta = adaptation.init(KEY, base)
    old, new = jnp.asarray([[1, 5, 2, 6]]), jnp.asarray([[1, VOCABULARY, 2, VOCABULARY + 1]])

    def logits(delta: Any, tokens: Any) -> jax.Array:
        return row.model.apply(adaptation.bind(base, delta), tokens)

    got = logits(delta, new)
    assert got.shape[-1] == VOCABULARY + (2 if name == "llama_tied" else 0)
    np.testing.assert_allclose(got[..., :VOCABULARY], row.model.apply(base, old), rtol=0, atol=1e-5)
    gradient = jax.grad(lambda d: jnp.sum(logits(d, new)[..., :VOCABULARY] ** 2))(delta)["embed"]["embedding"]["rows"]
    assert np.all(np.abs(gradient).max(1) > 0)
    merged = row.model.apply(materialize(adaptation.bind(base, scattered(delta, 1))), new)
    np.testing.assert_allclose(logits(scattered(delta, 1), new), merged, rtol=1e-5, atol=1e-5)


def test_new_tokens_start_as_the_others_are_spread():
    table = jnp.asarray(np.random.default_rng(0).normal([1.0, -2.0], [0.1, 3.0], (1000, 2)), jnp.float32)
    rows = textual_inversion([4], count=1000, embedding="table").init(KEY, {"table": table})["table"]["rows"]
    np.testing.assert_array_equal(rows[0], table[4])
    np.testing.assert_allclose(rows[1:].mean(0), table.mean(0), atol=0.3)
    np.testing.assert_allclose(rows[1:].std(0), table.std(0), rtol=0.1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"ids=\[\] with count=0 trains no token; use frozen"),
        ({"ids": [1, 1]}, r"ids=\[1, 1\] must be different"),
        ({"ids": [1], "count": 1, "like": [2]}, r"like=\[2\] must name a token for each of the 2"),
        ({"ids": [10]}, r"'table' has the rows 0 to 9 and not \[10\]; new tokens are a count"),
        ({"count": 1, "like": [12]}, r"'table' has the rows 0 to 9 and not \[12\]"),
        ({"ids": [1], "embedding": "wte"}, "'wte' matches nothing"),
    ],
    ids=str,
)
def test_what_cannot_be_learnt_is_an_error(options: dict[str, Any], message: str):
    arguments: dict[str, Any] = {"embedding": "table", **options}
    with pytest.raises(ValueError, match=message):
        textual_inversion(**arguments).init(KEY, {"table": W})
