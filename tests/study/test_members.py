from types import SimpleNamespace
from typing import Any

import pytest

from adaptlab import config
from adaptlab.study import members
from adaptlab.study.members import check_runs

METHOD = {"adapt": {"_target_": "adaptlab.adapt.full"}, "optim": {"_target_": "adaptlab.optim.adamw", "lr": 1e-3}}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"seeds": []}, r"^seeds=\[\]: there are no runs"),
        ({"seeds": [0, -1]}, "^seeds: -1 is not a seed"),
        ({"seeds": [2**32]}, "^seeds: 4294967296 is not a seed"),
        ({"seeds": [3, 1, 3]}, r"^seeds=\[3, 1, 3\] has a seed twice"),
        ({"seeds": [0], "final_seeds": []}, r"^final_seeds=\[\]"),
        ({"seed": -1}, "^seed: -1 is not a seed"),
        ({"search_seed": -1}, "^search_seed: -1 is not a seed"),
        ({"members": lambda: members({}, [0])}, "no methods"),
    ],
)
def test_runs_that_cannot_be_are_named(keys: dict[str, Any], said: str):
    with pytest.raises(config.ConfigError, match=said):
        check_runs(SimpleNamespace(**keys))


def test_runs_that_can_be_pass():
    check_runs(SimpleNamespace(seeds=[0, 2**32 - 1], seed=None, members=lambda: members({"full": METHOD}, [0])))
    check_runs(SimpleNamespace())


def test_no_rates_are_the_recipes_own_and_an_empty_list_is_an_error():
    assert [member.lr for member in members({"full": METHOD | {"learning_rates": None}}, [0])] == [1e-3]
    with pytest.raises(config.ConfigError, match="full has no learning rates"):
        members({"full": METHOD | {"learning_rates": []}}, [0])
    with pytest.raises(config.ConfigError, match="Two learning rates of a method are the same"):
        members({"full": METHOD | {"learning_rates": [1e-3, 0.001]}}, [0])
