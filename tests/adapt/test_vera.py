from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf, tree
from adaptlab.adapt import materialize, vera
from adaptlab.leaf.random import uniform_matrix
from tests.laws.table import scattered

BASE = scattered(
    {
        "layers": {"q": {"kernel": jnp.zeros((2, 6, 4))}, "k": {"kernel": jnp.zeros((2, 5, 7))}},
        "head": {"kernel": jnp.zeros((6, 4))},
    },
    0,
)
KEY = jax.random.key(0)
EVERY = ["layers/.*/kernel", "head/kernel"]


def changed(adaptation: Any, delta: Any, base: Any = BASE) -> dict[str, np.ndarray]:
    merged = jax.jit(lambda delta: materialize(adaptation.bind(base, delta)))(delta)
    merged, plain = tree.flatten(merged), tree.flatten(base)
    return {path: np.asarray(merged[path] - plain[path]) for path in plain}


def test_the_change_is_the_published_formula():
    adaptation = vera(3, select=EVERY, projection_seed=5)
    delta = scattered(adaptation.init(KEY, BASE), 1)
    a = np.asarray(uniform_matrix(5, (6, 3), (6 / 6) ** 0.5))
    b = np.asarray(uniform_matrix(6, (7, 3), (6 / 3) ** 0.5))
    for path, change in changed(adaptation, delta).items():
        own = tree.flatten(delta)
        d, out = np.asarray(own[f"{path}/d"]), np.asarray(own[f"{path}/b"])
        width, features = change.shape[-2:]
        wanted = (a[:width] * d[..., None, :]) @ b[:features].T * out[..., None, :]
        np.testing.assert_allclose(change, wanted, rtol=1e-4, atol=1e-5, err_msg=path)


def test_all_layers_and_all_matrices_of_a_shape_share_their_projections():
    adaptation = vera(3, select=EVERY)
    ones = jax.tree.map(jnp.ones_like, adaptation.init(KEY, BASE))
    change = changed(adaptation, ones)
    np.testing.assert_allclose(change["layers/q/kernel"][0], change["layers/q/kernel"][1], atol=1e-6)
    np.testing.assert_allclose(change["layers/q/kernel"][0], change["head/kernel"], atol=1e-6)


def test_the_projections_are_the_configs_and_not_the_runs():
    adaptation = vera(3)
    assert tree.digest(adaptation.init(KEY, BASE)) == tree.digest(adaptation.init(jax.random.key(1), BASE))
    ones = jax.tree.map(jnp.ones_like, adaptation.init(KEY, BASE))
    here, there = (changed(vera(3, projection_seed=seed), ones)["layers/q/kernel"] for seed in (0, 1))
    assert np.abs(here - there).max() > 0.1


def test_an_effective_rank_is_the_adaptation_of_that_rank():
    wide, narrow = vera(6, effective_rank=2.0), vera(2)
    delta = scattered(wide.init(KEY, BASE), 1)
    small = tree.map_with_path(lambda path, x: x[..., :2] if path.endswith("/d") else x, delta)
    for path, wanted in changed(narrow, small).items():
        np.testing.assert_allclose(changed(wide, delta)[path], wanted, rtol=1e-4, atol=1e-5)


def test_a_saved_delta_holds_two_vectors_a_matrix():
    delta = vera(3, d_initial=0.5).init(KEY, BASE)
    assert {path: x.shape for path, x in tree.flatten(delta["layers"]["q"]).items()} == {
        "kernel/b": (2, 4),
        "kernel/d": (2, 3),
    }
    assert np.all(np.asarray(delta["layers"]["q"]["kernel"]["d"]) == 0.5)
    assert not np.any(delta["layers"]["q"]["kernel"]["b"])


def test_rows_and_the_transpose_are_read_as_the_array_says():
    base = {"embed": {"embedding": BASE["head"]["kernel"]}}
    adaptation = vera(3, select="embed/.*")
    node = adaptation.bind(base, scattered(adaptation.init(KEY, base), 1, scale=1.0))["embed"]["embedding"]
    dense, ids = leaf.dense(node), jnp.asarray([[0, 5], [3, 3]])
    np.testing.assert_allclose(leaf.take(node, ids, jnp.float32), dense[ids], rtol=1e-4, atol=1e-5)
    y = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)
    np.testing.assert_allclose(leaf.dot(y, node, transpose=True), y @ dense.T, rtol=1e-4, atol=1e-5)


def test_a_rank_below_one_is_an_error():
    with pytest.raises(ValueError, match="rank=0 must be at least 1"):
        vera(0)
