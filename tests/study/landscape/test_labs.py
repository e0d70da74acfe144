from types import SimpleNamespace
from typing import Any, NamedTuple

import jax.numpy as jnp
import pytest

from adaptlab.config import ConfigError
from adaptlab.study.landscape.labs import at_own_rate, even_domains, open_labs, twins

OPTIM = {"_target_": "adaptlab.optim.adamw", "lr": 1e-3}
METHODS: dict[str, dict[str, Any]] = {
    "far_full": {
        "adapt": {"_target_": "adaptlab.adapt.full"},
        "optim": OPTIM,
        "learning_rates": [3e-4, 1e-3],
    },
    "far_lora": {
        "adapt": {"_target_": "adaptlab.adapt.lora", "rank": 2},
        "optim": OPTIM,
        "learning_rates": [3e-3],
    },
}


class Batch(NamedTuple):
    tokens: Any
    weights: Any


def test_domains_of_any_size_weigh_the_same():
    few = [Batch(jnp.full((1, 2), 1.0), jnp.ones((1, 2)))]
    many = [Batch(jnp.full((1, 2), 3.0), jnp.ones((1, 2))), Batch(jnp.full((1, 2), 5.0), jnp.array([[1.0, 0.0]]))]
    batches = even_domains({"few": few, "many": many})
    total = sum(float((b.tokens * b.weights).sum()) for b in batches) / sum(float(b.weights.sum()) for b in batches)
    assert total == pytest.approx((1.0 + (3.0 * 2 + 5.0) / 3) / 2)
    assert even_domains({"many": many}, rows=1)[0].tokens.shape == (1, 2)


def test_every_run_at_its_own_rate_has_a_twin_of_its_own():
    pairs = twins(METHODS, ["far_full", "near_full"], [0, 1])  # another target's are passed over
    assert {name: (one.seed, other.seed, one.lr, other.lr) for name, (one, other) in pairs.items()} == {
        "far_full/lr_0.001/seed_0": (0, 1000, 1e-3, 1e-3),
        "far_full/lr_0.001/seed_1": (1, 1001, 1e-3, 1e-3),
    }


def test_a_method_that_is_not_run_at_its_own_rate_is_an_error_with_the_remedy():
    with pytest.raises(ConfigError, match="add 1 to its multiples"):
        at_own_rate(METHODS, ["far_lora"], 0)
    with pytest.raises(ConfigError, match="far_full, far_lora"):
        at_own_rate(METHODS, ["far_dora"], 0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"shown": "middle"}, "near, far"),
        ({"twins": ["far_dora"]}, "far_full"),
        ({"measure": {"planes": ["flat"]}}, "models, random, sharpest"),
        ({"measure": {"shown": ["full"]}}, "needs two arms"),
        ({"measure": {"line_points": 2}}, "at least 3"),
        ({"arms": {"full": {"targets": ["middle"]}, "lora": {}}}, "near, far"),
    ],
)
def test_settings_that_name_nothing_are_refused_before_anything_loads(change: dict[str, Any], said: str):
    measure = {"_target_": "adaptlab.study.FinalLandscape", **change.pop("measure", {})}
    given = {"targets": {"near": {}, "far": {}}, "arms": {"full": {}, "lora": {}}, "shown": "far", "twins": []}
    with pytest.raises(ConfigError, match=said):
        open_labs(SimpleNamespace(**(given | {"measure": measure} | change)))
