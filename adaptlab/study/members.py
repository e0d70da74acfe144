"""The members of a study: which runs it consists of, and their programs."""

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from adaptlab import config
from adaptlab.train import Loss, Program, make_program

__all__ = ["Member", "members", "method_program"]


class Member(NamedTuple):
    """One run of a study.

    Attributes:
      method: the name of its method.
      lr: its peak learning rate.
      seed: its seed.
      skeleton: the method's config without its numbers.
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


def members(methods: Mapping[str, Mapping[str, Any]], seeds: Iterable[int]) -> list[Member]:
    """Return the runs of methods × learning rates × seeds, those that share a program in a row."""
    found = []
    for name, method in methods.items():
        skeleton, numbers = config.split({"adapt": method["adapt"], "optim": method["optim"]})
        rates = method["learning_rates"] or [numbers["optim.lr"]]
        for lr in rates:
            found += [Member(name, float(lr), seed, skeleton, numbers | {"optim.lr": float(lr)}) for seed in seeds]
    if len({member.name for member in found}) < len(found):
        raise config.ConfigError(f"Seeds {list(seeds)} or learning rates repeat: every run needs a name of its own.")
    return found


def method_program(member: Member, loss: Loss, total_steps: int, **options: Any) -> Program:
    """Return the program that a member shares with all members of the same skeleton.

    Args:
      member: any of them.
      loss: see `make_objective`.
      total_steps: the number of updates, which schedules stretch over.
      **options: passed to `make_program`.
    """

    def build(part: str, numbers: Mapping[str, Any], **given: Any) -> Any:
        return config.instantiate(config.fill(member.skeleton[part], numbers, part), **given)

    return make_program(
        loss,
        lambda numbers: build("adapt", numbers),
        lambda numbers: build("optim", numbers, total_steps=total_steps),
        **options,
    )
