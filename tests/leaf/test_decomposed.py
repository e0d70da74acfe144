from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf
from adaptlab.leaf import Decomposed, LowRank, column_norms


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def low_rank(w: Any, seed: int, rank: int = 3) -> LowRank:
    return LowRank(w, normal(seed, 7, rank), normal(seed + 1, rank, 5), jnp.asarray(0.5 + seed))


W = normal(0, 7, 5)
DIRECTIONS = {"array": W, "low_rank": low_rank(W, 1), "low_rank_twice": low_rank(low_rank(W, 1), 3, rank=2)}
MAGNITUDE = 1.0 + jnp.arange(5.0)
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(params=DIRECTIONS.values(), ids=list(DIRECTIONS))
def v(request: pytest.FixtureRequest) -> leaf.Weight:
    return request.param


def test_the_norms_are_those_of_the_columns(v: leaf.Weight):
    np.testing.assert_allclose(column_norms(v), np.linalg.norm(leaf.dense(v), axis=0), **CLOSE)


def test_every_column_has_its_magnitude_and_its_direction(v: leaf.Weight):
    dense = np.asarray(leaf.dense(Decomposed(v, MAGNITUDE)))
    np.testing.assert_allclose(np.linalg.norm(dense, axis=0), MAGNITUDE, **CLOSE)
    cosines = np.sum(dense * leaf.dense(v), axis=0) / MAGNITUDE / np.linalg.norm(leaf.dense(v), axis=0)
    np.testing.assert_allclose(cosines, 1.0, **CLOSE)


def test_dot_and_take_read_what_the_node_stands_for(v: leaf.Weight):
    node, x, y = Decomposed(v, MAGNITUDE), normal(9, 2, 3, 7), normal(9, 2, 3, 5)
    dense = leaf.dense(node)
    np.testing.assert_allclose(leaf.dot(x, node), x @ dense, **CLOSE)
    np.testing.assert_allclose(leaf.dot(y, node, transpose=True), y @ dense.T, **CLOSE)
    ids = jnp.asarray([[0, 6], [3, 3]])
    np.testing.assert_allclose(leaf.take(node, ids, jnp.float32), dense[ids], **CLOSE)


def test_leading_axes_are_batch_axes():
    stack = Decomposed(jnp.stack([W, 2 * W, -W]), jnp.stack([MAGNITUDE, MAGNITUDE, 2 * MAGNITUDE]))
    x = normal(9, 2, 7)
    _, scanned = jax.lax.scan(lambda carry, layer: (carry, leaf.dot(x, layer)), 0, stack)
    np.testing.assert_allclose(scanned, x[None] @ leaf.dense(stack), **CLOSE)


def test_the_sum_is_never_formed_while_training():
    node, x = Decomposed(DIRECTIONS["low_rank"], MAGNITUDE), normal(9, 4, 7)
    text = str(jax.make_jaxpr(jax.grad(lambda b: jnp.sum(leaf.dot(x, _with(node, b)))))(node.v.b))
    assert "f32[7,5] = dot_general" not in text
    assert "f32[7,5] = add" not in text


def _with(node: Decomposed, b: jax.Array) -> Decomposed:
    return Decomposed(LowRank(node.v.w, node.v.a, b, node.v.scale), node.magnitude, node.detach_norm)


def test_a_detached_norm_is_a_constant_to_derivatives_and_only_to_them():
    node, x = Decomposed(DIRECTIONS["low_rank"], MAGNITUDE), normal(9, 4, 7)
    norm = column_norms(node.v)

    def through(detach: bool) -> Any:
        whole = Decomposed(node.v, MAGNITUDE, detach)
        return jax.value_and_grad(lambda b: jnp.sum(leaf.dot(x, _with(whole, b)) ** 2))(node.v.b)

    def with_constant_norm(b: jax.Array) -> jax.Array:
        return jnp.sum((leaf.dot(x, _with(node, b).v) * (MAGNITUDE / norm)[None]) ** 2)

    (value, detached), (same, whole) = through(True), through(False)
    assert value == same
    np.testing.assert_allclose(detached, jax.grad(with_constant_norm)(node.v.b), rtol=1e-4)
    assert np.abs(detached - whole).max() > 1.0


def test_a_column_of_zeros_stays_one_and_makes_no_nan():
    node = Decomposed(W.at[:, 0].set(0.0), jnp.asarray([0.0, 1.0, 1.0, 1.0, 1.0]))
    grads = jax.grad(lambda n: jnp.sum(leaf.dot(normal(9, 4, 7), n)))(node)
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(grads))
    assert not np.any(leaf.dense(node)[:, 0])
