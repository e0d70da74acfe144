import doctest
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from adaptlab import stats
from adaptlab.stats import Mean, estimate, interval, merge, paired_interval, welch


def test_docstring_examples_hold():
    assert doctest.testmod(stats).failed == 0


def test_merging_parts_of_any_size_gives_the_mean_of_the_whole():
    x, w = np.random.default_rng(0).random((2, 10)).astype(np.float32)
    parts = [Mean(jnp.sum(x[s] * w[s]), jnp.sum(w[s])) for s in (slice(0, 1), slice(1, 7), slice(7, 10))]
    total = Mean.empty()
    for part in parts:
        total = merge(total, part)
    np.testing.assert_allclose(total.value, np.average(x, weights=w), rtol=1e-6)


def test_empty_is_neutral_on_both_sides():
    a = Mean(jnp.float32(3.0), jnp.float32(4.0))
    assert merge(a, Mean.empty()) == a == merge(Mean.empty(), a)


def test_a_mean_crosses_jit_and_its_value_is_differentiable_at_no_weight():
    value = jax.jit(lambda m: m.value)(Mean(jnp.array([6.0, 0.0]), jnp.array([4.0, 0.0])))
    np.testing.assert_array_equal(value, [1.5, np.nan])
    gradient = jax.grad(lambda s: jnp.where(True, 0.0, Mean(s, jnp.zeros(())).value))(1.0)
    assert gradient == 0.0


def test_interval_is_students_and_agrees_with_scipy():
    x = [3.1, 2.9, 3.4, 3.0, 2.7]
    got = interval(x, level=0.9)
    low, high = scipy.stats.t.interval(0.9, 4, loc=np.mean(x), scale=scipy.stats.sem(x))
    np.testing.assert_allclose([got.low, got.high], [low, high], rtol=1e-12)
    assert got.n == 5
    assert got.sd == pytest.approx(np.std(x, ddof=1))


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf]])
def test_no_interval_is_claimed_where_the_spread_is_unknown(values):
    got = interval(values)
    assert math.isnan(got.low)
    assert math.isnan(got.high)
    assert got.n == len(values)


def test_pairing_removes_what_the_seed_does_to_both():
    seed_effect = np.array([0.0, 10.0, -4.0])
    got = paired_interval(seed_effect, np.add(seed_effect, [0.9, 1.0, 1.1]))
    assert got.mean == pytest.approx(1.0)
    assert got.high - got.low < 0.6


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired_interval([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match=r"shape \(1, 2\)"):
        interval(np.ones((1, 2)))
    with pytest.raises(ValueError, match=r"between 0 and 1, got 95"):
        interval([1.0, 2.0], level=95)


def test_welch_agrees_with_scipy_for_unequal_groups():
    a, b = [3.1, 2.9, 3.4, 3.0, 2.7], [4.0, 5.5, 3.2]
    got, expected = welch(a, b), scipy.stats.ttest_ind(b, a, equal_var=False)
    low, high = expected.confidence_interval(0.9)
    assert got.interval(0.9)[1:3] == pytest.approx((low, high), rel=1e-12)
    assert got.p_value(got.mean) == pytest.approx(expected.pvalue, rel=1e-10)
    assert got.n == 3


def test_the_p_value_is_the_level_at_which_the_interval_touches():
    got = estimate([3.1, 2.9, 3.4, 3.0, 2.7])
    assert got.interval(1 - got.p_value(got.mean - 2.8)).low == pytest.approx(2.8, rel=1e-12)
    assert got.p_value(0.0) == 1.0


@pytest.mark.parametrize(("a", "b"), [([1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0, math.nan]), ([], [1.0, 2.0])])
def test_groups_of_unknown_spread_have_no_interval(a, b):
    assert math.isnan(welch(a, b).interval().low)
    assert math.isnan(welch(a, b).p_value(1.0))


def test_runs_without_any_spread_have_an_interval_of_no_width():
    assert welch([1.0, 1.0], [3.0, 3.0]).interval()[:3] == (2.0, 2.0, 2.0)
    assert estimate([1.0, 1.0]).p_value(1.0) == 0.0
