"""The early-stopped multi-power law against the published parameters and errors, and against AdamW written out.

tests/golden/mpl_loss_curves_25M.csv has the curves and the split of Luo et al. (arXiv:2503.12811).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import least_squares

from adaptlab.scaling import aicc, bootstrap, covariance, diagnose, fit, refit, subset
from adaptlab.scaling.annealing import annealing_points, exposure_of, make_curve
from adaptlab.scaling.annealing_laws import immediate_law, multi_power_law
from adaptlab.scaling.early_stopping import fit_early_stopped, refit_early_stopped
from adaptlab.scaling.left_out import leave_schedules_out
from tests.scaling.published import published_curves

# The 25M model in the authors' repository, to all digits.
PUBLISHED = {
    "L0": 3.04045406,
    "A": 0.52468604,
    "alpha": 0.50786857,
    "B": 363.78751622,
    "C": 2.06560812,
    "beta": 0.58279013,
    "gamma": 0.64142257,
}
MINIMUM = 1.382996e-4  # of the objective, see test_annealing.py


@pytest.fixture(scope="module")
def curves():
    return published_curves()


@pytest.fixture(scope="module")
def exposure(curves):
    return exposure_of(curves["train"])


@pytest.fixture(scope="module")
def fitted(exposure):
    return fit_early_stopped(exposure)


def mean_error(values, curves):
    """The mean over curves of the mean relative error, as published."""
    errors = []
    for curve in curves:
        one = exposure_of([curve])
        with jax.enable_x64(True):
            y = np.asarray(multi_power_law(one).predict(values, annealing_points(one).x))
        errors.append(np.abs(y / curve.loss_T - 1).mean())
    return np.mean(errors)


def flat(name, lr, loss=3.0):
    """A curve of 20 rows."""
    step = np.arange(100, 2100, 100.0)
    return make_curve(name, step, np.broadcast_to(lr, step.shape), np.broadcast_to(loss, step.shape), 100)


def test_three_schedules_give_the_published_parameters(fitted):
    assert fitted.values == pytest.approx(PUBLISHED, rel=0.02)


def test_six_other_schedules_are_predicted_as_well_as_published(fitted, curves):
    assert mean_error(PUBLISHED, curves["test"]) == pytest.approx(0.0011047, abs=1e-7)
    assert mean_error(fitted.values, curves["test"]) < 0.0011


def test_it_is_not_a_minimum_and_says_so(fitted):
    assert 1.5 * MINIMUM < fitted.objective < 2.993e-4  # the published parameters have 2.993e-4
    assert not fitted.minimum
    assert not fitted.converged
    (said,) = fitted.warnings
    assert said.startswith("Stopped early, by design: the parameters are those after ")
    assert "did not converge" not in said


def adamw(values, slope_of, updates):
    """The parameters `(p,)` and objectives met on the way, by the equations of AdamW."""
    rates = np.array([0.05, 0.05, 0.005, 0.05, 0.05, 0.005, 0.005])
    m, v = np.zeros(7), np.zeros(7)
    met = []
    for t in range(1, updates + 1):
        objective, g = (np.asarray(one) for one in slope_of(values))
        met.append((float(objective), values))
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        values = values * (1 - rates * 0.01)
        values = values - rates * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return met


def test_the_estimate_is_the_best_of_adamw_from_the_minimum_of_the_law_whose_drops_gain_at_once(fitted, exposure):
    e, points = exposure, annealing_points(exposure)

    def residuals(p):
        return np.log(e.loss) - np.log(p[0] + p[1] * e.area ** -p[2] - 100 * p[3] * (3e-4 - e.lr))

    tight = {"ftol": 1e-15, "xtol": 1e-15, "gtol": 1e-15}
    simple = least_squares(residuals, [3.0, 0.5, 0.5, 4.0], loss="huber", f_scale=1e-3, x_scale="jac", **tight).x
    begin = np.array([*simple[:3], 100 * simple[3], 1.0, 0.5, 0.5])
    law = multi_power_law(exposure)

    def objective(p):
        u = jnp.log(points.y) - jnp.log(law.predict(dict(zip(law.names, p, strict=True)), points.x))
        return jnp.where(jnp.abs(u) < 1e-3, u * u / 2, 1e-3 * (jnp.abs(u) - 5e-4)).sum()

    with jax.enable_x64(True):
        met = adamw(begin, jax.jit(jax.value_and_grad(objective)), 110)
    lowest, values = min(met, key=lambda one: one[0])
    assert fitted.objective == pytest.approx(lowest, rel=1e-4)
    assert list(fitted.values.values()) == pytest.approx(values.tolist(), rel=1e-3)


def test_drops_that_gain_at_once_are_the_limit_of_the_multi_power_law():
    lr = np.where(np.arange(20) < 12, 1e-3, 3e-4)
    exposure = exposure_of([flat("two_stage", lr)])
    values = {"L0": 3.0, "A": 0.5, "alpha": 0.5, "B": 100.0}
    with jax.enable_x64(True):
        x = annealing_points(exposure).x
        limit = multi_power_law(exposure).predict({**values, "C": 1e30, "beta": 5.0, "gamma": 0.5}, x)
        at_once = immediate_law(exposure).predict({**values, "L0": 3.0 + 100 * 1e-3}, x)
    np.testing.assert_allclose(limit, at_once, rtol=1e-12)


def test_what_rests_on_a_minimum_is_refused(fitted):
    for needs in (covariance, diagnose, aicc, bootstrap, partial(refit, weights=np.ones((2, fitted.points.n)))):
        with pytest.raises(ValueError, match=r"need a minimum.* stopped early.* Take fit\(\)"):
            needs(fitted)


@pytest.mark.parametrize(
    ("lr", "options", "said"),
    [
        (1e-3, {}, "The learning rate is 0.001 at all 20 rows.*in which it falls"),
        (np.linspace(1e-3, 1e-4, 20), {"loss": "huber_likelihood"}, "estimates a scale with the law.*Take 'huber'"),
        (np.linspace(1e-3, 1e-4, 20), {"updates": 0}, "updates must be 1 or more, got 0"),
        (np.linspace(1e-3, 1e-4, 20), {"patience": 0}, "patience must be 1 or more, got 0"),
        (np.linspace(1e-3, 1e-4, 20), {"loss": "hubber"}, "loss must be one of"),
    ],
)
def test_what_cannot_be_descended_is_an_error_that_says_why(lr, options, said):
    with pytest.raises(ValueError, match=said):
        fit_early_stopped(exposure_of([flat("c", lr, np.linspace(4, 3, 20))]), **options)


def test_parameters_stay_within_their_bounds_where_a_step_would_leave_them():
    """Losses near 0.01 are below one update's change of L0."""
    lr = np.linspace(1e-3, 1e-4, 20)
    found = fit_early_stopped(exposure_of([flat("c", lr, 0.01 + 0.01 * lr)]), starts=4)
    assert np.isfinite(found.objective)
    for p in found.form.parameters:
        assert p.low <= found.values[p.name] <= p.high


@pytest.mark.slow
def test_a_schedule_left_out_is_predicted_from_the_others_as_if_it_had_never_been_there(fitted, exposure):
    found = leave_schedules_out(fitted, exposure, partial(refit_early_stopped, exposure))
    points = annealing_points(exposure)
    for name, error in found.items():
        out = exposure.name == name
        alone = fit_early_stopped(exposure, subset(points, ~out))
        with jax.enable_x64(True):
            y = np.asarray(alone.form.predict(alone.values, points.x))
        assert error == pytest.approx(np.abs(y / points.y - 1)[out].mean(), rel=1e-2)
    assert list(found.values()) == pytest.approx([2.02e-3, 1.43e-3, 1.04e-3], rel=0.01)


@pytest.mark.slow
def test_schedules_that_only_the_one_left_out_has_drops_of_have_no_error():
    lr = np.where(np.arange(20) < 12, 1e-3, 3e-4)
    loss = 3 + np.arange(1, 21) ** -0.5
    exposure = exposure_of([flat("one", 1e-3, loss), flat("two", lr, loss - 30 * (1e-3 - lr))])
    fitted = fit(immediate_law(exposure), annealing_points(exposure), starts=4)
    found = leave_schedules_out(fitted, exposure, partial(refit, fitted))
    assert np.isnan(found["two"])
    assert found["one"] < 1e-2
