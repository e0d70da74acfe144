"""Loss curves in a table: which rows are which curve, which are fitted, and what cannot be meant."""

import numpy as np
import pytest

from adaptlab.report.scaling.annealing import curves_csv, draw_annealing, fit_annealing, read_curves, split_schedules
from adaptlab.scaling.annealing_laws import area_law
from adaptlab.scaling.table import make_table

COLUMNS = {"schedule": "name", "step": "step", "lr": "lr", "y": "loss"}


def rows(**changes):
    """Two curves of a known law of the area, at rates of 0.01 and 0.02, in alternating rows."""
    step = np.repeat(np.arange(100, 1100, 50.0), 2)
    lr = np.tile([0.01, 0.02], 20)
    loss = 2 + (lr * (step - 50)) ** -0.5
    made = {"name": ["slow", "fast"] * 20, "step": step, "lr": lr, "loss": loss}
    return make_table("curves.csv", {**made, **changes})


@pytest.fixture(scope="module")
def found():
    curves = read_curves(rows(), **COLUMNS)
    return fit_annealing(area_law, curves, ["slow"], ["fast"], starts=16)


def test_a_law_of_one_schedule_predicts_another_at_twice_the_rate(found):
    assert found.result["parameters"]["L0"]["value"] == pytest.approx(2, rel=1e-2)
    assert found.result["schedules"]["fast"]["split"] == "test"
    assert found.result["holdout"] == {k: v for k, v in found.result["schedules"]["fast"].items() if k != "split"}
    assert found.result["holdout"]["mean_relative_error"] < 1e-2
    (last,) = found.result["predictions"]
    assert last["inputs"] == {"schedule": "fast", "step": 1050.0}
    assert last["value"] == pytest.approx(found.predicted["fast"][-1])
    assert any("share their noise" in warning for warning in found.result["diagnostics"]["warnings"])


@pytest.mark.parametrize(
    ("estimate", "said"),
    [
        (
            "early_stoping",
            r"must be one of \['minimise', 'early_stopping'\]; got 'early_stoping'. Did you mean 'early_stopping'",
        ),
        ("early_stopping", "published for law=multi_power only, and the law is area. Take estimate=minimise"),
    ],
)
def test_an_estimate_that_there_is_not_or_not_of_the_law_is_an_error(estimate, said):
    with pytest.raises(ValueError, match=said):
        fit_annealing(area_law, read_curves(rows(), **COLUMNS), ["slow"], ["fast"], estimate=estimate)


def test_every_row_and_its_prediction_is_written_and_drawn(found):
    header, *lines = curves_csv(found).splitlines()
    assert header == "schedule,split,step,lr,loss,predicted"
    assert len(lines) == sum(row["n"] for row in found.result["schedules"].values())
    measured, predicted = np.array([[float(one) for one in line.split(",")[4:]] for line in lines]).T
    np.testing.assert_allclose(measured, predicted, rtol=0.02)
    figure = draw_annealing(found)
    assert [axes.get_title("left").split(" ")[:2] for axes in figure.axes] == [
        ["slow", "(train):"],
        ["fast", "(test):"],
    ]


@pytest.mark.parametrize(
    ("train", "test", "expected"),
    [
        (None, None, (["a", "b", "c"], [])),
        (["b"], None, (["b"], ["a", "c"])),
        (None, ["b"], (["a", "c"], ["b"])),
        (["c"], ["a"], (["c"], ["a"])),
    ],
)
def test_what_is_not_said_to_be_fitted_or_predicted_is_the_rest(train, test, expected):
    assert split_schedules(["a", "b", "c"], train, test) == expected


@pytest.mark.parametrize(
    ("train", "test", "said"),
    [
        (
            ["cosin"],
            None,
            r"train: there is no schedule 'cosin'. Did you mean 'cosine'\? There are: \['cosine', 'wsd'\]",
        ),
        (["wsd"], ["wsd"], r"\['wsd'\] are in train and in test"),
        (None, ["wsd", "cosine"], "no schedule is left to fit to"),
    ],
)
def test_schedules_that_cannot_be_split_so_are_an_error(train, test, said):
    with pytest.raises(ValueError, match=said):
        split_schedules(["cosine", "wsd"], train, test)


@pytest.mark.parametrize(
    ("changes", "columns", "said"),
    [
        ({"loss": [-1.0] * 40}, {}, r"curves.csv, row 1: loss is -1; it must be a number, positive"),
        ({"lr": [np.nan] * 40}, {}, r"row 1: lr is nan; it must be a number, 0 or more"),
        ({"name": ["one"] * 40}, {}, "one: step 100 stands in two rows"),
        ({}, {"lr": "rate"}, "no column 'rate'"),
        ({}, {"schedule": "nam"}, r"no column 'nam'. Did you mean 'name'"),
        ({}, {"where": "step>1e9"}, "no rows in which 'step>1e9' holds"),
        ({}, {"where": "step>1e9 or step<200"}, "only 2 rows behind the warm-up"),
    ],
)
def test_curves_that_cannot_be_read_are_an_error_that_says_where(changes, columns, said):
    with pytest.raises(ValueError, match=said):
        read_curves(rows(**changes), **{**COLUMNS, **columns})
