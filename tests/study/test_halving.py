import math
from typing import Any

import pytest

from adaptlab.study import successive_halving


def test_rungs_are_shares_of_the_budget_that_grow_by_eta_and_fall_on_measurements():
    assert successive_halving(eta=3, first=0.01).rungs(1000, 5) == [10, 30, 90, 270, 810]
    assert successive_halving(eta=2, first=0.25).rungs(12, 3) == [3, 6]
    assert successive_halving(eta=4, first=0.5).rungs(10, 4) == [8]
    assert successive_halving(eta=2, first=0.9).rungs(10, 10) == []


def test_one_in_eta_goes_on_rounded_up_and_never_a_diverged_one_before_another():
    rule = successive_halving(eta=3)
    values = {"a": 3.0, "b": None, "c": 1.0, "d": math.nan, "e": 2.0, "f": 4.0, "g": 1.0}
    assert rule.survivors(values) == {"c", "g", "e"}
    assert rule.survivors({"a": None, "b": math.nan}) == {"a"}


def test_of_equal_runs_the_first_goes_on():
    assert successive_halving(eta=2).survivors({"z": 1.0, "a": 1.0}) == {"z"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"eta": 1}, "eta=1 must be at least 2"),
        ({"first": 1.0}, "first=1.0"),
        ({"reward": "loss"}, r"reward='loss' is not one of \[None, 'gain', 'gain_per_parameter'\]"),
    ],
)
def test_a_rule_that_prunes_nothing_or_by_nothing_is_refused(options: dict, said: str):
    make: Any = getattr(successive_halving, "__wrapped__", successive_halving)  # without the checker of annotations
    with pytest.raises(ValueError, match=said):
        make(**options)
