"""Products with plain arrays: values, derivatives of any order, and how a CPU computes them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from adaptlab import leaf

ROWS = 24


def operands(shape: tuple[int, int], transpose: bool, dtype: Any = jnp.float32) -> tuple[jax.Array, jax.Array]:
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (2, ROWS // 2, shape[transpose]))
    return x.astype(dtype), jax.random.normal(keys[1], shape, dtype)


def loss(x: jax.Array, w: jax.Array, transpose: bool) -> jax.Array:
    return jnp.sum(jnp.sin(leaf.dot(x, w, transpose=transpose).astype(jnp.float32)))


def reference(x: jax.Array, w: jax.Array, transpose: bool) -> jax.Array:
    return jnp.sum(jnp.sin(jnp.matmul(x, w.T if transpose else w).astype(jnp.float32)))


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (6, 6)])
def test_derivatives_are_those_of_the_product(shape: tuple[int, int], transpose: bool) -> None:
    x, w = operands(shape, transpose)
    dx, dw = jax.tree.map(lambda z: jnp.cos(3 * z), (x, w))

    def first(f: Any) -> Any:
        return lambda x, w: jax.value_and_grad(f, argnums=(0, 1))(x, w, transpose)

    def second(f: Any) -> Any:  # forward over reverse, as curvature takes it
        return jax.jvp(first(f), (x, w), (dx, dw))[1]

    def through_layers(f: Any) -> Any:  # stacked, batched, recomputed, as models do
        one = jax.checkpoint(lambda total, w: (total + jax.vmap(f, (0, None, None))(x, w, transpose).sum(), None))
        return jax.grad(lambda w: jax.lax.scan(one, 0.0, jnp.stack([w, 2 * w]))[0])(w)

    ours, theirs = ((first(f)(x, w), second(f), through_layers(f)) for f in (loss, reference))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), ours, theirs)


@pytest.mark.parametrize("of", ["x", "w"])
def test_a_derivative_by_one_side_alone(of: str) -> None:
    x, w = operands((7, 5), False)
    at = "xw".index(of)
    ours, theirs = (jax.grad(f, argnums=at)(x, w, False) for f in (loss, reference))
    np.testing.assert_allclose(ours, theirs, rtol=2e-5, atol=2e-5)


def test_half_precision_stays_half_precision() -> None:
    x, w = operands((7, 5), False, jnp.bfloat16)
    assert leaf.dot(x, w).dtype == jnp.bfloat16
    assert jax.tree.map(lambda z: z.dtype, jax.grad(loss, argnums=(0, 1))(x, w, False)) == (jnp.bfloat16, jnp.bfloat16)


@pytest.mark.parametrize(("shape", "transpose"), [((256, 64), False), ((64, 256), False), ((256, 64), True)])
def test_a_gradient_is_computed_with_the_narrower_side_on_the_left(shape: tuple[int, int], transpose: bool) -> None:
    x, w = operands(shape, transpose)
    text = jax.jit(jax.grad(loss, argnums=1), static_argnums=2).lower(x, w, transpose).compile().as_text()
    assert text is not None
    assert "f32[64,256]{1,0} dot(" in text
    assert "f32[256,64]{1,0} dot(" not in text


def test_a_frozen_matrix_is_not_turned() -> None:
    x, w = operands((256, 64), False)

    def turned(argnums: int) -> bool:
        jaxpr = jax.make_jaxpr(jax.grad(loss, argnums=argnums), static_argnums=2)(x, w, False)
        return lax.optimization_barrier_p.name in str(jaxpr)

    assert turned(1)
    assert not turned(0)
