from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf
from adaptlab.leaf import LowRank


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def low_rank(w: Any, seed: int, rank: int = 3, lead: tuple[int, ...] = (), shape: tuple[int, int] = (7, 5)) -> LowRank:
    a, b = normal(seed, *lead, shape[0], rank), normal(seed + 1, *lead, rank, shape[1])
    return LowRank(w, a, b, jnp.asarray(np.full(lead, 0.5 + seed), jnp.float32))


W = normal(0, 7, 5)
WEIGHTS = {"array": W, "low_rank": low_rank(W, 1), "low_rank_twice": low_rank(low_rank(W, 1), 3, rank=2)}
CLOSE = {"rtol": 1e-5, "atol": 1e-4}


@pytest.fixture(params=WEIGHTS.values(), ids=WEIGHTS.keys())
def weight(request: pytest.FixtureRequest) -> leaf.Weight:
    return request.param


def test_dense_is_the_sum_of_the_products():
    node = WEIGHTS["low_rank_twice"]
    wanted = W + node.w.scale * node.w.a @ node.w.b + node.scale * node.a @ node.b
    np.testing.assert_allclose(leaf.dense(node), wanted, **CLOSE)


def test_dot_multiplies_by_what_the_leaf_stands_for(weight: leaf.Weight):
    x = normal(9, 2, 3, 7)
    np.testing.assert_allclose(leaf.dot(x, weight), x @ leaf.dense(weight), **CLOSE)


def test_the_transposed_dot_multiplies_by_the_transpose(weight: leaf.Weight):
    x = normal(9, 2, 3, 5)
    np.testing.assert_allclose(leaf.dot(x, weight, transpose=True), x @ leaf.dense(weight).T, **CLOSE)


def test_take_gives_rows_of_what_the_leaf_stands_for(weight: leaf.Weight):
    ids = jnp.asarray([[0, 6], [3, 3], [1, 2]])
    rows = leaf.take(weight, ids, jnp.float32)
    np.testing.assert_allclose(rows, leaf.dense(weight)[ids], **CLOSE)


def test_leading_axes_are_batch_axes_to_every_node():
    layers, x = 4, normal(9, 2, 7)
    inner = low_rank(normal(5, layers, 7, 5), 1, lead=(layers,))
    stack = low_rank(inner, 3, rank=2, lead=(layers,))
    dense = leaf.dense(stack)
    assert dense.shape == (layers, 7, 5)
    _, scanned = jax.lax.scan(lambda carry, layer: (carry, leaf.dot(x, layer)), 0, stack)
    mapped = jax.vmap(lambda layer: leaf.dot(x, layer))(stack)
    for i in range(layers):
        np.testing.assert_allclose(scanned[i], x @ dense[i], **CLOSE)
        np.testing.assert_allclose(mapped[i], x @ dense[i], **CLOSE)


def test_the_compute_type_is_that_of_the_input(weight: leaf.Weight):
    x = normal(9, 2, 7).astype(jnp.bfloat16)
    y = leaf.dot(x, weight)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32), leaf.dot(x.astype(jnp.float32), weight), rtol=0.1, atol=0.5)
    assert leaf.take(weight, jnp.asarray([1]), jnp.bfloat16).dtype == jnp.bfloat16


def test_a_small_update_survives_bfloat16_beside_the_weight_and_dies_merged():
    w, x = normal(0, 64, 64), normal(9, 8, 64)
    node = LowRank(w, normal(1, 64, 2) * 1e-3, normal(2, 2, 64), jnp.asarray(1.0))
    update = x @ node.a @ node.b
    half = jnp.bfloat16

    def error(adapted: jax.Array, plain: jax.Array) -> float:
        return float(jnp.linalg.norm((adapted - plain).astype(jnp.float32) - update) / jnp.linalg.norm(update))

    side = leaf.dot(x.astype(half), LowRank(jnp.zeros_like(w), node.a, node.b, node.scale))
    assert error(side, jnp.zeros_like(side)) < 0.02
    merged, plain = leaf.dense(node).astype(half), w.astype(half)
    assert error(x.astype(half) @ merged, x.astype(half) @ plain) > 0.2


def test_only_nodes_are_nodes():
    assert leaf.is_node(WEIGHTS["low_rank"])
    assert not leaf.is_node(W)
    assert len(jax.tree.leaves(WEIGHTS["low_rank_twice"])) == 7


def test_the_product_is_never_formed_while_training():
    node = WEIGHTS["low_rank"]
    text = str(jax.make_jaxpr(lambda n, x: jax.grad(lambda y: jnp.sum(leaf.dot(y, n)))(x))(node, normal(9, 4, 7)))
    assert "f32[7,5] = dot_general" not in text


def test_the_order_in_memory_changes_no_derivative():
    x, direction = normal(3, 4, 7), normal(4, 4, 7)

    def f(g: Any) -> Any:
        return lambda x: jnp.sum(jnp.sin(g(x) @ normal(5, 4, 7)))

    def both(f: Any) -> Any:
        gradient = jax.grad(f)
        return gradient(x), jax.jvp(gradient, (x,), (direction,))[1], jax.vmap(gradient)(x[None])

    got, wanted = (jax.jit(lambda g=g: both(f(g)))() for g in (lambda x: leaf.as_written(x.T), jnp.transpose))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), got, wanted)


def test_the_gradient_of_a_is_a_product_whose_narrow_side_is_the_left_one():
    node, x = low_rank(W, 1), normal(9, 6, 7)

    def total(a: jax.Array) -> jax.Array:
        return jnp.sum(jnp.square(leaf.dot(x, LowRank(node.w, a, node.b, node.scale))))

    text = jax.jit(jax.grad(total)).lower(node.a).compile().as_text()
    assert "f32[3,7]{1,0} dot(" in text
    assert "f32[7,3]{1,0} dot(" not in text  # the slow one, see `leaf.as_written`
