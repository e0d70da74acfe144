from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptlab import tree
from adaptlab.adapt import full
from adaptlab.optim import adamw
from adaptlab.stats import Mean
from adaptlab.train import TrainState, init_state, l2_sp, make_objective, make_step
from tests.train.toy import BASE, points, squares

KEY = jax.random.key(0)


def one_step(batch: Any, optimizer: optax.GradientTransformation, state: Any = None, **options: Any) -> Any:
    objective = make_objective(squares, full(), options.pop("terms", ()))
    state = init_state(BASE, optimizer) if state is None else state
    return jax.jit(make_step(objective, optimizer, **options))(state, BASE, batch, KEY)


def by_hand(batch: Any) -> tuple[float, np.ndarray]:
    x, y, weights = (np.asarray(part, np.float64) for part in batch)
    error = x @ np.asarray(BASE["w"], np.float64) - y
    return (weights * error**2).sum() / weights.sum(), 2 * (weights * error) @ x / weights.sum()


@pytest.mark.parametrize("accumulate", [1, 2, 4, 8])
def test_the_gradient_is_that_of_the_whole_batch_however_it_is_cut(accumulate: int):
    batch = points(0)
    assert len({float(part.sum()) for part in batch.weights.reshape(4, 2)}) > 1
    state, metrics = one_step(batch, optax.sgd(1.0), accumulate=accumulate)
    loss, gradient = by_hand(batch)
    np.testing.assert_allclose(BASE["w"] - state.delta["w"], gradient, rtol=1e-5)
    np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-5)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient), rtol=1e-5)
    assert metrics["weight"] == batch.weights.sum()


def test_a_term_counts_once_whatever_the_batch():
    penalty = lambda delta, base: 3.0 * jnp.sum(jnp.square(delta["w"] - 1.0))  # noqa: E731
    batch = points(0)
    for accumulate in (1, 4):
        state, metrics = one_step(batch, optax.sgd(1.0), terms=[penalty], accumulate=accumulate)
        loss, gradient = by_hand(batch)
        w = np.asarray(BASE["w"])
        np.testing.assert_allclose(BASE["w"] - state.delta["w"], gradient + 6 * (w - 1), rtol=1e-5)
        np.testing.assert_allclose(metrics["loss"], loss + 3 * ((w - 1) ** 2).sum(), rtol=1e-5)


def test_a_batch_size_that_does_not_divide_is_an_error():
    with pytest.raises(ValueError, match="accumulate=3 does not divide the batch size 8"):
        one_step(points(0), optax.sgd(1.0), accumulate=3)


def test_every_microbatch_gets_a_key_of_its_own():
    def noisy(params: Any, batch: Any, key: jax.Array) -> Mean:
        return Mean(jax.random.uniform(key) * jnp.sum(params["w"]), jnp.asarray(1.0))

    step = make_step(make_objective(noisy, full()), optax.sgd(1.0), accumulate=2)
    state, _ = step(init_state(BASE, optax.sgd(1.0)), BASE, points(0, rows=2), KEY)
    draws = [jax.random.uniform(jax.random.fold_in(KEY, i)) for i in range(2)]
    np.testing.assert_allclose(BASE["w"] - state.delta["w"], np.full(3, np.mean(draws)), rtol=1e-5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_loss_that_is_not_finite_freezes_the_state_and_marks_the_step(bad: float):
    optimizer = adamw(0.1, total_steps=9)
    healthy, _ = one_step(points(0), optimizer)
    batch = points(1)
    broken, metrics = one_step(batch._replace(y=batch.y.at[0].set(bad)), optimizer, healthy)
    assert not np.isfinite(metrics["loss"])
    assert broken.diverged_at == 1
    assert broken.step == 2
    assert same(broken, healthy)
    later, _ = one_step(points(2), optimizer, broken)
    assert (later.diverged_at, later.step) == (1, 3)
    assert same(later, healthy)


def same(a: TrainState, b: TrainState) -> bool:
    return tree.digest([a.delta, a.opt_state]) == tree.digest([b.delta, b.opt_state])


def test_a_gradient_that_is_not_finite_under_a_finite_loss_freezes_too():
    def root(params: Any, batch: Any, key: jax.Array) -> Mean:
        return Mean(jnp.sum(jnp.sqrt(params["w"] * 0.0)), jnp.asarray(1.0))  # the slope of a root at 0 is infinite

    step = make_step(make_objective(root, full()), optax.sgd(1.0))
    state, metrics = step(init_state(BASE, optax.sgd(1.0)), BASE, points(0), KEY)
    assert metrics["loss"] == 0
    assert state.diverged_at == 0
    np.testing.assert_array_equal(state.delta["w"], BASE["w"])


def test_a_batch_without_weight_moves_nothing():
    batch = points(0)
    state, metrics = one_step(batch._replace(weights=jnp.zeros(8)), optax.sgd(1.0))
    np.testing.assert_array_equal(state.delta["w"], BASE["w"])
    assert metrics["weight"] == 0
    assert metrics["grad_norm"] == 0


def test_l2_sp_pulls_towards_the_base_and_what_is_no_weight_of_it_towards_zero():
    base = {"w": jnp.asarray([1.0, 2.0])}
    term = l2_sp(strength=0.5)
    assert float(term({"w": jnp.asarray([1.0, 4.0])}, base)) == pytest.approx(0.25 * 4.0)
    assert float(term({"w": {"a": jnp.asarray([3.0])}}, base)) == pytest.approx(0.25 * 9.0)
    np.testing.assert_array_equal(jax.grad(term)({"w": base["w"]}, base)["w"], jnp.zeros(2))
