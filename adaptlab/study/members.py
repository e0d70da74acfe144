"""The members of a study: which runs it consists of, and their programs."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from adaptlab import config, models
from adaptlab.shard import Placement
from adaptlab.train import Program, make_program

__all__ = ["PARTS", "Member", "check_runs", "members", "method_program"]

PARTS = ("adapt", "optim", "loss", "terms", "stopping", "watch", "carry")
"""What of a method its program is made of; see `Method`."""


class Member(NamedTuple):
    """One run of a study.

    Attributes:
      method: the name of its method.
      lr: its peak learning rate.
      seed: its seed.
      skeleton: the method's config without its numbers: members of equal skeletons share a program.
      numbers: the numbers, with `optim.lr` among them.
    """

    method: str
    lr: float
    seed: int
    skeleton: dict[str, Any]
    numbers: dict[str, float]

    @property
    def name(self) -> str:
        """The run's name, which is also its folder. (No "=": Hydra would want it quoted on a command line.)"""
        return f"{self.method}/lr_{self.lr:g}/seed_{self.seed}"

    @property
    def adapt(self) -> dict[str, Any]:
        """The config of the adaptation, numbers included."""
        return config.fill(self.skeleton, self.numbers)["adapt"]

    @property
    def program(self) -> str:
        """What members that share a program have in common, as text."""
        return json.dumps(self.skeleton, sort_keys=True)


def members(methods: Mapping[str, Mapping[str, Any]], seeds: Iterable[int]) -> list[Member]:
    """Return the runs of methods × learning rates × seeds, those that share a program in a row.

    Raises:
      ConfigError: no runs, two runs of one name, or a learning rate or a seed that is none.
    """
    found, seeds = [], list(seeds)
    _check_seeds(seeds)
    if not methods:
        raise config.ConfigError("There are no runs, since there are no methods; give at least one.")
    for name, method in methods.items():
        skeleton, numbers = config.split({part: method.get(part) for part in PARTS})
        rates = method.get("learning_rates")
        rates = [numbers["optim.lr"]] if rates is None else rates
        if not rates:
            raise config.ConfigError(f"{name} has no learning rates; give at least one.")
        if wrong := [lr for lr in rates if not lr >= 0]:
            raise config.ConfigError(f"{name}: optim.lr={wrong[0]} is not a learning rate: it is at least 0.")
        for lr in rates:
            found += [Member(name, float(lr), seed, skeleton, numbers | {"optim.lr": float(lr)}) for seed in seeds]
    if len({member.name for member in found}) < len(found):
        raise config.ConfigError("Two learning rates of a method are the same: every run needs a name of its own.")
    return found


def check_runs(study: Any) -> None:
    """Raise ConfigError for what is wrong with the runs of a study, as far as its config says: before anything loads.

    Args:
      study: may have `seeds`, `final_seeds`, `seed` or `search_seed` (None: no seed), and `members()`.
    """
    for key in ("seeds", "final_seeds"):
        if hasattr(study, key):
            _check_seeds(getattr(study, key), key)
    for key in ("seed", "search_seed"):
        if (seed := getattr(study, key, None)) is not None:
            _check_seeds([seed], key)
    if hasattr(study, "members"):
        study.members()


def _check_seeds(seeds: Sequence[int], key: str = "seeds") -> None:
    if not seeds:
        raise config.ConfigError(f"{key}=[]: there are no runs; give at least one seed.")
    if wrong := [seed for seed in seeds if not 0 <= seed < 2**32]:
        raise config.ConfigError(f"{key}: {wrong[0]} is not a seed: it is at least 0 and below 2^32.")
    if len(set(seeds)) < len(seeds):
        raise config.ConfigError(f"{key}={list(seeds)} has a seed twice: every run needs a name of its own.")


def method_program(
    member: Member,
    model: models.Model,
    total_steps: int,
    *,
    target: str,
    accumulate: int = 1,
    pipeline: Mapping[str, Any] | None = None,
    placement: Placement | None = None,
) -> Program:
    """Return the program that a member shares with all members of the same skeleton.

    Args:
      member: any of them.
      model: the base's.
      total_steps: the number of updates, which schedules stretch over.
      target: the domain adapted to, whose held-out loss early stopping watches unless told otherwise.
      accumulate: microbatches per update.
      pipeline: arguments of `adaptlab.models.pipelined`: how a batch runs through a mesh's stages.
      placement: where the model lives.
    """
    skeleton = member.skeleton

    def build(part: str, numbers: Mapping[str, Any], **given: Any) -> Any:
        return config.instantiate(config.fill(skeleton[part], numbers, part), **given)

    def loss(numbers: Mapping[str, Any]) -> Any:
        plain = build("loss", numbers, model=model) if skeleton["loss"] else models.language_modelling(model)
        return plain if pipeline is None else models.pipelined(plain, **pipeline)

    def stopping(numbers: Mapping[str, Any]) -> Any:
        return build("stopping", numbers)

    def carry(numbers: Mapping[str, Any], opt_state: Any, moments: Any) -> Any:
        betas = {beta: numbers[f"optim.{beta}"] for beta in ("b1", "b2") if f"optim.{beta}" in numbers}
        return build("carry", numbers, opt_state=opt_state, saved=moments, **betas)

    return make_program(
        loss,
        lambda numbers: build("adapt", numbers, fresh=model.init, slots=model.slots()),
        lambda numbers: build("optim", numbers, total_steps=total_steps),
        terms=lambda numbers: list(build("terms", numbers).values()) if skeleton["terms"] else (),
        stopping=(skeleton["watch"] or f"held_out/{target}/loss", stopping) if skeleton["stopping"] else None,
        carry=carry if skeleton["carry"] else None,
        accumulate=accumulate,
        placement=placement,
    )
