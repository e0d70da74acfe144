import numpy as np
import pytest

from adaptlab.report.curves import make_curves
from adaptlab.report.trajectory import MEAN, best, crossing, make_trajectory, trajectory

NAN = float("nan")


def _toy(target, news, code, steps=(0, 10, 20, 30)):
    loss = {"german": np.array(target), "news": np.array(news), "code": np.array(code)}
    return make_trajectory(np.array(steps), loss, "german")


def test_gain_and_change_are_relative_to_step_zero():
    t = _toy([4.0, 3.0, 2.5, 2.75], [3.0, 3.5, 4.0, 5.0], [2.0, 2.0, 2.5, 3.0])
    assert t.gain_N.tolist() == [0.0, 1.0, 1.5, 1.25]
    assert t.change["news"].tolist() == [0.0, 0.5, 1.0, 2.0]
    assert t.change["code"].tolist() == [0.0, 0.0, 0.5, 1.0]
    assert t.change[MEAN].tolist() == [0.0, 0.25, 0.75, 1.5]
    assert list(t.change) == ["news", "code", MEAN]


def test_the_change_at_a_gain_is_interpolated_at_the_first_crossing():
    t = _toy([4.0, 3.0, 2.0, 3.0], [3.0, 3.5, 4.5, 9.0], [2.0, 2.0, 2.0, 2.0])
    got = crossing(t, 1.25)  # a quarter of the way from step 10 to step 20; step 20 to 30 crosses it again
    assert got.step == 12.5
    assert got.change == {"news": 0.75, "code": 0.0, MEAN: 0.375}


def test_a_gain_reached_exactly_is_read_off_the_measurement():
    t = _toy([4.0, 3.9, 3.3, 2.9], [3.0, 3.1, 3.7, 3.9], [2.0] * 4)
    for i in range(4):
        assert crossing(t, t.gain_N[i]).change["news"] == t.change["news"][i]


def test_a_loss_that_first_worsens_crosses_on_its_way_down():
    t = _toy([4.0, 5.0, 3.0, 2.0], [3.0, 4.0, 5.0, 6.0], [2.0] * 4)
    assert crossing(t, 0.0) == (0.0, {"news": 0.0, "code": 0.0, MEAN: 0.0})
    assert crossing(t, 0.5).step == 17.5
    assert crossing(t, 0.5).change["news"] == 1.75


def test_a_gain_that_is_never_reached_is_nan():
    got = crossing(_toy([4.0, 3.0, 2.5, 2.5], [3.0] * 4, [2.0] * 4), 1.6)
    assert np.isnan([got.step, *got.change.values()]).all()


def test_a_diverged_run_keeps_what_it_reached_before():
    t = _toy([4.0, 3.0, NAN, np.inf], [3.0, 3.5, NAN, np.inf], [2.0, 2.5, NAN, NAN])
    assert best(t.gain_N) == 1
    assert crossing(t, 0.5).change[MEAN] == 0.25
    assert np.isnan(crossing(t, 1.5).step)


def test_the_best_of_equal_gains_is_the_first():
    assert best(np.array([0.0, 1.0, 1.0])) == 1
    assert best(np.array([0.0, -1.0, NAN])) == 0
    assert best(np.array([NAN, NAN])) == 0


def _rows(metric, steps):
    return [("a", step, metric, 1.0) for step in steps]


def test_curves_that_cannot_be_compared_are_refused():
    german, news = "held_out/german/loss", "held_out/news/loss"
    late = make_curves(_rows(german, [5, 10]) + _rows(news, [5, 10]))
    with pytest.raises(ValueError, match="first measured at step 5"):
        trajectory(late, "a", "german", ["news"])
    apart = make_curves(_rows(german, [0, 10]) + _rows(news, [0, 20]))
    with pytest.raises(ValueError, match=r"measured 'news' at the steps \[0, 20\]"):
        trajectory(apart, "a", "german", ["news"])
    with pytest.raises(KeyError, match="held_out/code/loss"):
        trajectory(apart, "a", "german", ["code"])
    for upstream in ([], ["german"], ["news", "news"], ["mean"]):
        with pytest.raises(ValueError, match="at least one other upstream domain"):
            trajectory(apart, "a", "german", upstream)
