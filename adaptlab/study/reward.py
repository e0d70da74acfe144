"""What a run is worth: the gain on the target, and the parameters that are trained for it."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import numpy as np

from adaptlab import config
from adaptlab.adapt import count_trained, prepared
from adaptlab.measure import make_probe
from adaptlab.study.lab import Lab, open_base
from adaptlab.study.members import Member

__all__ = ["Reward", "base_losses", "comparison", "reward", "reward_value", "trained_parameters"]

Reward = Literal["gain", "gain_per_parameter"]


def reward(kind: Reward, gain: float, parameters: int) -> float:
    """Return what a run is worth, larger is better.

    Args:
      kind: "gain" is G = L(base) - L(run) on held-out text, in nats per token; "gain_per_parameter" is G / N, which
        alone favours methods of few parameters: the same gain of a tenth as many is worth ten times as much.
      gain: G.
      parameters: N, how many parameters train.
    """
    return gain / max(parameters, 1) if kind == "gain_per_parameter" else gain


def base_losses(lab: Lab) -> dict[str, float]:
    """Return what the base itself has of everything that is measured, `{"held_out/<domain>/<metric>": value}`.

    It is what gain counts from: a method that does not start as the base has another loss at step 0.
    """
    domains = {f"held_out/{name}": batches for name, batches in lab.held_out.items()}
    # The jobs of a sweep find a lab whose weights are gone, since nothing is left to train.
    params = open_base(lab.base, lab.placement.mesh)[2] if lab.params is None else lab.params
    return make_probe(lab.measurement, domains)(params)


def trained_parameters(lab: Lab, member: Member) -> int:
    """Return how many parameters a member trains, without what masks leave out."""
    model = lab.pretrained.model
    # Asked between the updates of others too, where nothing may reach a device unnoticed: a factory's scalars may.
    with jax.transfer_guard("allow"):
        adaptation = config.instantiate(member.adapt, fresh=model.init, slots=model.slots())

        counted: list[int] = []

        def count(base: Any) -> None:
            base = prepared(adaptation, base)
            counted.append(count_trained(adaptation, base, adaptation.init(jax.random.key(0), base)))

        jax.eval_shape(count, lab.params)
        return counted[0]


def comparison(lab: Lab, kind: Reward | None, metric: str) -> Callable[[Member, float | None], float | None]:
    """Return `(member, value of the metric) -> what is compared`, smaller is better; without a reward the value itself.

    Raises:
      ConfigError: the base has no such metric, so that there is no gain in it.
    """
    if kind is None:
        return lambda member, value: value
    base = base_losses(lab)
    if metric not in base:
        raise config.ConfigError(
            f"halving.metric={metric!r}: a reward is a gain over the base, which has only {sorted(base)}."
        )

    def compared(member: Member, value: float | None) -> float | None:
        return None if value is None else -reward(kind, base[metric] - value, trained_parameters(lab, member))

    return compared


def reward_value(results: Mapping[str, Mapping[str, Any]], kind: Reward, base_loss: float) -> float:
    """Return what a sweeper should make small: minus the mean reward of all runs; infinite if one diverged."""
    if any(result["target_loss"] is None for result in results.values()):
        return math.inf
    worth = [reward(kind, base_loss - r["target_loss"], r["trainable_parameters"]) for r in results.values()]
    return -float(np.mean(worth))
