"""The laws of annealing against sums over steps written out, and against published curves and parameters.

tests/golden/mpl_loss_curves_25M.csv has the curves and the split of Luo et al. (arXiv:2503.12811).
"""

import jax
import numpy as np
import pytest

from adaptlab.scaling import fit
from adaptlab.scaling.annealing import annealing_points, drops_of, exposure_of, make_curve
from adaptlab.scaling.annealing_laws import area_law, momentum_law, multi_power_law
from tests.scaling.published import published_curves

# Table of the authors' repository, 25M.
PUBLISHED = {"L0": 3.040, "A": 0.525, "alpha": 0.508, "B": 363.788, "C": 2.066, "beta": 0.583, "gamma": 0.641}
TISSUE = {"L0": 3.0, "A": 0.5, "alpha": 0.5, "C": 0.8, "decay": 2e-3}


def schedule(kind, total=1200, warmup=100, peak=1e-3):
    """The learning rate of each step from 1 on."""
    t = np.arange(1, total + 1.0)
    late = np.clip((t - warmup) / (total - warmup), 0, 1)
    shape = {
        "constant": np.ones(total),
        "cosine": 0.55 + 0.45 * np.cos(np.pi * late),
        "two_stage": np.where(t < 700, 1.0, 0.3),
        "to_zero": 1 - late,
    }[kind]
    return np.where(t <= warmup, peak * t / warmup, peak * shape)


def stepwise(law, lr, values):
    """The law at every step, summed over steps and drops one by one as in the papers' equations."""
    area = np.cumsum(lr)
    drops = np.concatenate([[-lr[0]], lr[:-1] - lr[1:]])
    lost = np.zeros(len(lr))
    for k in np.flatnonzero(drops):
        since = area[k:] - area[k] + lr[k]
        if law == "momentum":
            response = (1 - (1 - values["decay"]) ** np.arange(1, len(lr) - k + 1)) / values["decay"]
            lost[k:] += values["C"] * drops[k] * response
        elif lr[k] > 0:
            response = 1 - (1 + values["C"] * lr[k] ** -values["gamma"] * since) ** -values["beta"]
            lost[k:] += values["B"] * drops[k] * response
    return values["L0"] + values["A"] * area ** -values["alpha"] - lost


def predicted(law, values, curves, **options):
    exposure = exposure_of(curves, **options)
    with jax.enable_x64(True):
        return np.asarray(law(exposure).predict(values, annealing_points(exposure).x))


def logged(kind, every=10):
    """A curve as a table has it: a row at every tenth step behind the warm-up."""
    lr = schedule(kind)
    steps = np.arange(100, 1201, every)
    return make_curve(kind, steps, lr[steps - 1], np.full(len(steps), 3.0), 100), lr, steps


@pytest.mark.parametrize("kind", ["constant", "cosine", "two_stage", "to_zero"])
@pytest.mark.parametrize(
    ("law", "values", "of_drops"),
    [(momentum_law, TISSUE, "C"), (multi_power_law, {**PUBLISHED, "B": 100.0}, "B")],
    ids=["momentum", "multi_power"],
)
def test_prefix_sums_over_rows_equal_the_sums_over_steps(kind, law, values, of_drops):
    curve, lr, steps = logged(kind)
    exact = stepwise(law.__name__.removesuffix("_law"), lr, values)[steps - 1]
    without = predicted(law, {**values, of_drops: 0.0}, [curve])
    difference, largest = np.abs(predicted(law, values, [curve]) - exact), np.abs(exact - without).max()
    # Drops between two rows have one rate and one place: the middle.
    assert np.median(difference) < 1e-3 * largest
    assert difference.max() < 3e-3 * largest


def test_the_area_is_exact_where_the_learning_rate_is_linear_between_rows():
    for kind in ("constant", "to_zero"):
        curve, lr, steps = logged(kind)
        np.testing.assert_allclose(curve.area_T, np.cumsum(lr)[steps - 1], rtol=1e-12)


def test_no_drop_to_come_changes_a_loss():
    two, one = (logged(kind)[0] for kind in ("two_stage", "constant"))
    same = two.step_T < 700
    for law, values in ((momentum_law, TISSUE), (multi_power_law, PUBLISHED)):
        np.testing.assert_array_equal(predicted(law, values, [two])[same], predicted(law, values, [one])[same])


def test_a_change_between_constant_rates_is_one_drop_at_the_row_where_the_new_rate_first_stands():
    curve, _, _ = logged("two_stage")
    drops = drops_of(curve)
    at = np.flatnonzero(drops.size_K > 0)
    assert drops.rate_K[at].tolist() == [pytest.approx(3e-4)]
    assert drops.step_K[at].tolist() == [699]
    assert drops.size_K[at] == pytest.approx(7e-4)


def test_merging_drops_keeps_their_sum_and_hardly_moves_the_law():
    curve, _, _ = logged("cosine", every=5)
    full, few = drops_of(curve), drops_of(curve, 48)
    assert len(few.size_K) == 48 < len(full.size_K)
    assert few.size_K.sum() == pytest.approx(full.size_K.sum())
    whole, merged, without = (
        predicted(multi_power_law, {**PUBLISHED, **change}, [curve], most_drops=most)
        for change, most in (({}, 256), ({}, 48), ({"B": 0.0}, 48))
    )
    assert np.abs(whole - merged).max() < 0.01 * np.abs(whole - without).max()


def test_rows_of_a_warm_up_give_its_area_and_are_not_fitted():
    lr = schedule("constant")
    steps = np.arange(0, 1201, 20)
    found = make_curve("c", steps, np.concatenate([[0.0], lr])[steps], np.full(len(steps), 3.0))
    assert found.step_T[0] == 100
    given = make_curve("c", steps[5:], lr[steps[5:] - 1], np.full(len(steps) - 5, 3.0), 100)
    np.testing.assert_allclose(found.area_T, given.area_T)


@pytest.mark.parametrize(
    ("step", "lr", "said"),
    [
        ([1, 2, 2, 3], [1, 1, 1, 1], "step 2 stands in two rows"),
        ([1, 2, 3, 4], [1, -1, 1, 1], "must be 0 or more"),
        ([1, 2, 3, 4], [0, 0, 0, 0], "not all rates 0"),
        ([1, 2], [1, 1], "only 2 rows behind the warm-up"),
    ],
)
def test_a_curve_that_cannot_be_is_an_error(step, lr, said):
    with pytest.raises(ValueError, match=said):
        make_curve("c", np.array(step), np.array(lr), np.ones(len(step)))


@pytest.fixture(scope="module")
def published():
    return published_curves()


def mean_errors(law, values, curves):
    return [np.abs(predicted(law, values, [one]) / one.loss_T - 1).mean() for one in curves]


def test_the_published_parameters_predict_the_published_test_curves_as_well_as_published(published):
    """The paper reports 0.0011; its parameters are printed with three to four digits."""
    assert np.mean(mean_errors(multi_power_law, PUBLISHED, published["test"])) < 1.2e-3


def test_an_area_alone_does_not_know_of_annealing(published):
    exposure = exposure_of(published["train"], most_rows=40)
    fitted = fit(area_law(exposure), annealing_points(exposure), starts=16)
    assert fitted.starts_agree == 1.0
    assert np.mean(mean_errors(area_law, fitted.values, published["test"])) == pytest.approx(7.2e-3, rel=0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("law", "objective", "error"), [(momentum_law, 2.072928e-4, 1.4e-3), (multi_power_law, 1.382996e-4, 1.4e-3)]
)
def test_a_fit_to_all_rows_of_three_schedules_predicts_the_six_others(published, law, objective, error):
    """The objectives are those of SciPy's least_squares (loss="huber", f_scale=1e-3) from two starts.

    The published parameters of the multi-power law have 2.993e-4, and a smaller error than its best fit.
    """
    exposure = exposure_of(published["train"])
    fitted = fit(law(exposure), annealing_points(exposure), starts=16)
    assert fitted.objective == pytest.approx(objective, rel=1e-5)
    assert np.mean(mean_errors(law, fitted.values, published["test"])) < error
