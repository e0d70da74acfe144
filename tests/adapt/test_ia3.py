from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf, tree
from adaptlab.adapt import ia3, materialize
from tests.laws.table import scattered

BASE = scattered(
    {
        "layers": {
            "attention": {name: {"kernel": jnp.zeros((2, 6, 4))} for name in ("query", "key", "value")},
            "feed_forward": {"down": {"kernel": jnp.zeros((2, 8, 6)), "bias": jnp.zeros((2, 6))}},
        },
        "embed": {"embedding": jnp.zeros((10, 6))},
    },
    0,
)
KEY = jax.random.key(0)
DOWN = "layers/feed_forward/down/kernel"


def test_by_default_keys_values_and_the_feed_forwards_activations_are_scaled():
    shapes = {path: x.shape for path, x in tree.flatten(ia3().init(KEY, BASE)).items()}
    assert shapes == {
        "layers/attention/key/kernel/output": (2, 4),
        "layers/attention/value/kernel/output": (2, 4),
        f"{DOWN}/input": (2, 8),
    }


def test_outputs_and_inputs_are_scaled_by_one_plus_delta_layer_by_layer():
    delta = scattered(ia3().init(KEY, BASE), 1)
    merged = tree.flatten(materialize(ia3().bind(BASE, delta)))
    for path, w in tree.flatten(BASE).items():
        wanted = np.asarray(w)
        flat = tree.flatten(delta)
        if f"{path}/output" in flat:
            wanted = wanted * (1 + np.asarray(flat[f"{path}/output"])[:, None, :])
        if f"{path}/input" in flat:
            wanted = wanted * (1 + np.asarray(flat[f"{path}/input"])[:, :, None])
        np.testing.assert_allclose(merged[path], wanted, rtol=1e-6, err_msg=path)


def test_a_bias_is_scaled_with_its_output_but_not_with_its_input():
    for name, scaled in (("output", True), ("input", False)):
        adaptation = ia3(**{"output": None, "input": None, name: DOWN})
        delta = scattered(adaptation.init(KEY, BASE), 1)
        merged = materialize(adaptation.bind(BASE, delta))["layers"]["feed_forward"]["down"]
        x = np.random.default_rng(0).normal(size=(2, 3, 8)).astype(np.float32)
        factor = 1 + np.asarray(tree.flatten(delta)[f"{DOWN}/{name}"])[:, None]
        kernel, bias = (np.asarray(BASE["layers"]["feed_forward"]["down"][n]) for n in ("kernel", "bias"))
        wanted = (x @ kernel + bias[:, None]) * factor if scaled else (x * factor) @ kernel + bias[:, None]
        got = x @ np.asarray(merged["kernel"]) + np.asarray(merged["bias"])[:, None]
        np.testing.assert_allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_a_scaled_weight_reads_as_the_matrix_it_stands_for():
    rng = np.random.default_rng(0)
    w, left, right = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((10, 6), (10,), (6,)))
    x, z = (jnp.asarray(rng.normal(size=(2, 3, n)), jnp.float32) for n in (10, 6))
    for before, after in ((left, right), (left, None), (None, right)):
        node = leaf.Scaled(w, before, after)
        full = leaf.dense(node)
        close: Any = {"rtol": 1e-5, "atol": 1e-5}
        np.testing.assert_allclose(leaf.dot(x, node), x @ full, **close)
        np.testing.assert_allclose(leaf.dot(z, node, transpose=True), z @ full.T, **close)
        np.testing.assert_allclose(leaf.take(node, jnp.asarray([[3, 1]]), jnp.float32), full[np.array([[3, 1]])])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": None, "input": None}, "scales nothing; use frozen"),
        ({"output": "embed/embedding"}, "ia3 selects 'embed/embedding', which is not a kernel; narrow `output`"),
        ({"input": "layers/mlp/.*"}, "(?s)'layers/mlp/.*' matches nothing.*layers/feed_forward"),
    ],
    ids=str,
)
def test_what_cannot_be_scaled_is_an_error(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ia3(**options).init(KEY, BASE)
