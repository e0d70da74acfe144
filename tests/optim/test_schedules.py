from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab.optim import Schedule, constant, cosine, linear


def values(schedule: Schedule, total: int) -> np.ndarray:
    return np.asarray(jax.vmap(lambda step: schedule(step, total))(jnp.arange(total)))


@pytest.mark.parametrize("make", [constant, linear, cosine])
def test_warm_up_rises_in_equal_parts_from_the_first_update(make: Any):
    factors = values(make(warmup=0.2), 20)
    np.testing.assert_allclose(factors[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    assert np.all(factors[4:] <= 1)
    assert np.all(np.diff(factors[4:]) <= 0)


@pytest.mark.parametrize("make", [linear, cosine])
@pytest.mark.parametrize("final", [0.0, 0.1])
def test_decay_ends_at_its_final_value_at_the_last_update(make: Any, final: float):
    np.testing.assert_allclose(values(make(warmup=0.1, final=final), 50)[-1], final, atol=1e-7)


def test_constant_stays_at_one():
    np.testing.assert_array_equal(values(constant(), 7), np.ones(7))


def test_linear_is_a_straight_line_between_warm_up_and_end():
    factors = values(linear(warmup=0.1, final=0.2), 10)
    np.testing.assert_allclose(factors, [1 - 0.8 * i / 9 for i in range(10)], rtol=1e-6)


def test_cosine_is_half_a_period_between_warm_up_and_end():
    factors = values(cosine(warmup=0.1, final=0.2), 10)
    wanted = [0.2 + 0.8 * (1 + np.cos(np.pi * i / 9)) / 2 for i in range(10)]
    np.testing.assert_allclose(factors, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("make", [linear, cosine])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0.0), (1, 1.0), (5, 1.0), (3, 0.01)])
def test_extreme_lengths_stay_finite_and_between_zero_and_one(make: Any, total: int, warmup: float):
    factors = values(make(warmup=warmup, final=0.5), total)
    assert np.all(np.isfinite(factors))
    assert np.all((factors > 0) & (factors <= 1))


@pytest.mark.parametrize("make", [linear, cosine])
def test_numbers_may_be_traced_and_mapped_over(make: Any):
    @jax.jit
    @jax.vmap
    def factor(warmup: jax.Array, final: jax.Array) -> jax.Array:
        return jax.vmap(lambda step: make(warmup=warmup, final=final)(step, 12))(jnp.arange(12))

    warmups, finals = jnp.asarray([0.0, 0.25, 0.5]), jnp.asarray([0.0, 0.1, 0.3])
    for row, warmup, final in zip(factor(warmups, finals), [0.0, 0.25, 0.5], [0.0, 0.1, 0.3], strict=True):
        np.testing.assert_allclose(row, values(make(warmup=warmup, final=final), 12), rtol=1e-6, atol=1e-7)
