from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptlab.optim import adamw, linear, sgd

PARAMS = {"w": jnp.asarray([1.0, -2.0]), "b": jnp.asarray([0.5])}
GRADIENTS = [
    {"w": jnp.asarray([0.3, -0.4]), "b": jnp.asarray([1.2])},
    {"w": jnp.asarray([5.0, 0.1]), "b": jnp.zeros(1)},
]


def run(optimizer: optax.GradientTransformation, params: Any = PARAMS) -> list[Any]:
    """The parameters after each gradient. Optax alone needs the standard promotion of types."""
    state, seen = optimizer.init(params), []
    for gradient in GRADIENTS * 3:
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen


def assert_same(got: list[Any], wanted: list[Any]) -> None:
    for g, w in zip(got, wanted, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), g, w)


def test_adamw_is_optax_adamw():
    ours = adamw(0.01, total_steps=6, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1)
    assert_same(run(ours), run(optax.adamw(0.01, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1)))


def test_adamw_by_hand_for_two_updates():
    lr, b1, b2, eps, decay = 0.01, 0.9, 0.99, 1e-8, 0.1
    w, m, v, wanted = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2), []
    for t, gradient in enumerate(GRADIENTS, 1):
        g = np.asarray(gradient["w"], np.float64)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        w = w - lr * (step + decay * w)
        wanted.append(w)
    got = run(adamw(lr, total_steps=6, b1=b1, b2=b2, eps=eps, weight_decay=decay))
    for g, w in zip(got, wanted, strict=False):
        np.testing.assert_allclose(g["w"], w, rtol=1e-5)


def test_sgd_is_optax_sgd_with_heavy_ball_momentum():
    assert_same(run(sgd(0.1, total_steps=6, momentum=0.9)), run(optax.sgd(0.1, momentum=0.9)))
    assert_same(run(sgd(0.1, total_steps=6)), run(optax.sgd(0.1)))


def test_clipping_bounds_the_norm_over_all_parameters_and_keeps_the_direction():
    optimizer = sgd(1.0, total_steps=2, clip=0.65)  # the first gradient has norm 1.3
    updates, _ = optimizer.update(GRADIENTS[0], optimizer.init(PARAMS), PARAMS)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -g / 2, rtol=1e-6), updates, GRADIENTS[0])
    loose = sgd(1.0, total_steps=2, clip=1.31)
    updates, _ = loose.update(GRADIENTS[0], loose.init(PARAMS), PARAMS)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -g, rtol=1e-6), updates, GRADIENTS[0])


def test_the_schedule_multiplies_the_learning_rate_and_the_decay_too():
    schedule = linear(warmup=0.0, final=0.0)
    ours = run(adamw(0.1, total_steps=6, schedule=schedule, weight_decay=0.5))
    factors = [1 - (i + 1) / 6 for i in range(6)]
    wanted = run(optax.adamw(lambda step: 0.1 * jnp.asarray(factors)[step], weight_decay=0.5))
    assert_same(ours, wanted)
    jax.tree.map(np.testing.assert_array_equal, ours[-1], ours[-2])  # the last factor is zero


@pytest.mark.parametrize("make", [adamw, sgd])
def test_every_number_may_be_traced_and_mapped_over(make: Any):
    names = {"adamw": ["b1", "b2", "eps", "weight_decay", "clip"], "sgd": ["momentum", "clip"]}[make.__name__]

    def update(numbers: dict[str, jax.Array]) -> Any:
        optimizer = make(total_steps=4, **numbers)
        updates, _ = optimizer.update(GRADIENTS[0], optimizer.init(PARAMS), PARAMS)
        return updates

    rows = [{"lr": 0.1, **dict.fromkeys(names, 0.1 * (i + 1))} for i in range(3)]
    together = jax.jit(jax.vmap(update))(jax.tree.map(lambda *x: jnp.asarray(x), *rows))
    for i, row in enumerate(rows):
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-5), together, update(row))


def test_moments_are_float32_whatever_the_count():
    state = adamw(0.1, total_steps=3).init(PARAMS)
    kinds = {x.dtype for x in jax.tree.leaves(state)}
    assert kinds == {jnp.dtype("float32"), jnp.dtype("int32")}
