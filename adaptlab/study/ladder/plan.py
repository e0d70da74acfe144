"""What a study of a ladder will run: every cell of its grids, and what it costs, before anything starts."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from adaptlab import config
from adaptlab.study.ladder.sizes import Budget, Ladder, Rung, budget
from adaptlab.study.members import members
from adaptlab.study.settings import Training

__all__ = ["Cell", "LadderPlan", "adaptations", "methods_at", "plan_ladder", "pretraining_cells"]

log = logging.getLogger(__name__)

SCRATCH = "scratch"
"""The method that learns the target from random weights, which fine-tuning is compared with."""
PRETRAINING = "pretraining"
"""The family of the runs that make bases."""

_OWN = ("ranks", "sizes", "multiple")  # what a method says besides its config
_UNITS = ((1e6, "M"), (1e3, "k"))


class Cell(NamedTuple):
    """Runs that differ in their seed (and, of low-rank ones, in their rank) only.

    Attributes:
      name: what it is called, e.g. `n3_full_8k`.
      family: the method, or `PRETRAINING`.
      rung: the model.
      rank: of a low-rank update, or None.
      unique_tokens: D, how much text there is.
      tokens: how much is seen, repetitions included.
      method: the config of the runs, see `adaptlab.study.Method`.
      budget: of a pre-training run, or None.
    """

    name: str
    family: str
    rung: Rung
    rank: int | None
    unique_tokens: int
    tokens: int
    method: dict[str, Any]
    budget: Budget | None = None

    @property
    def flops(self) -> float:
        """Of one run: 6 N D, or 4 N D where the weights' own gradients are not needed."""
        return (4.0 if self.rank else 6.0) * self.rung.parameters * self.tokens

    def about(self, largest: Rung) -> dict[str, Any]:
        """What is said of each of its runs besides their results."""
        return {
            "stage": PRETRAINING if self.family == PRETRAINING else "adaptation",
            "family": self.family,
            "rung": self.rung.dial,
            "split": "largest" if self.rung == largest else "smaller",
            "rank": self.rank,
            "parameters": self.rung.parameters,
            "unique_tokens": self.unique_tokens,
            "tokens": self.tokens,
        }


class LadderPlan(NamedTuple):
    """All that a study will run.

    Attributes:
      ladder: the ladder.
      pretraining: `{rung: cells}`.
      adaptations: `{rung: cells}`.
      seeds: one run per cell and seed.
      training: of adaptations.
      most: the largest amount of the target's text that is asked for, in tokens.
    """

    ladder: Ladder
    pretraining: dict[Rung, list[Cell]]
    adaptations: dict[Rung, list[Cell]]
    seeds: list[int]
    training: Training
    most: int

    def cells(self, one: Rung) -> list[Cell]:
        """All cells of a rung."""
        return [*self.pretraining[one], *self.adaptations[one]]

    def homes(self, one: Rung, folder: Path) -> list[Path]:
        """The folders of all runs of a rung."""
        methods = {cell.name: cell.method for cell in self.cells(one)}
        return [folder / "runs" / member.name for member in members(methods, self.seeds)]


def plan_ladder(study: Any) -> LadderPlan:
    """Return what a study will run, and log what that costs.

    Args:
      study: has `ladder`, `optim`, `adapt`, `tune`, `methods`, `sizes`, `seeds`, `training` and `gflops`; see
        `experiments.scaling`.

    Raises:
      ConfigError: amounts of text that do not increase, or no method from scratch to compare with.
    """
    ladder, training = config.instantiate(study.ladder), config.instantiate(study.training)
    sizes = {name: [*method.get("sizes", study.sizes)] for name, method in study.methods.items()}
    for name, amounts in sizes.items():
        if not amounts or amounts != sorted(set(amounts)) or amounts[0] < training.length:
            raise config.ConfigError(
                f"sizes={amounts} of {name}: expected increasing tokens from {training.length} on."
            )
    if SCRATCH not in study.methods:
        raise config.ConfigError(f"methods has {[*study.methods]}: effective data needs one called {SCRATCH}.")
    if training.length != ladder.length:
        raise config.ConfigError(
            f"training.length={training.length}, but ladder.length={ladder.length}: give one length."
        )
    for name, method in study.methods.items():
        if not isinstance(given := method.get("multiple"), int | float) or given <= 0:
            raise config.ConfigError(
                f"methods.{name}.multiple={given}: expected a positive number, its learning rate in units of "
                "pre-training's."
            )
    multiples = {name: method["multiple"] for name, method in study.methods.items()}
    most = max(amounts[-1] for amounts in sizes.values())
    steps = training.duration.in_steps(
        batch_size=training.batch_size, length=training.length, rows=most // training.length
    )
    methods = methods_at({"adapt": study.adapt, "optim": study.tune}, study.methods)
    seen = steps * training.batch_size * training.length
    plan = LadderPlan(
        ladder,
        {one: pretraining_cells(ladder, one, study.optim) for one in ladder.rungs},
        {one: adaptations(ladder, one, methods, sizes, multiples, seen) for one in ladder.rungs},
        [*study.seeds],
        training,
        most,
    )
    _announce(plan, study.gflops)
    return plan


def pretraining_cells(ladder: Ladder, one: Rung, optim: Mapping[str, Any]) -> list[Cell]:
    """Return the pre-training runs of a rung: at every budget, or at the last alone if it is the largest rung.

    Args:
      ladder: the ladder.
      one: the rung.
      optim: the optimiser's config, whose `lr` the ladder sets.
    """
    budgets = ladder.budgets[-1:] if one == ladder.largest else ladder.budgets
    cells = []
    for wanted in budgets:
        how = budget(one, wanted, length=ladder.length, rate=ladder.rate, batch=ladder.batch)
        method = {"adapt": {"_target_": "adaptlab.adapt.scratch"}, "optim": {**optim, "lr": how.lr}}
        name = f"{one.name}_{PRETRAINING}_{_amount(wanted)}"
        cells.append(Cell(name, PRETRAINING, one, None, how.tokens, how.tokens, method, how))
    return cells


def methods_at(
    recipe: Mapping[str, Any], methods: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, int | None], dict[str, Any]]:
    """Return `{(family, rank): config}`: each method, a low-rank one at each of its `ranks`, all of one program.

    Args:
      recipe: `{"adapt", "optim"}` that all have in common.
      methods: what is different, by name; with `ranks` or without. `sizes` and `multiple` are not of the config.
    """
    found: dict[tuple[str, int | None], dict[str, Any]] = {}
    for family, change in methods.items():
        ranks: list[int] = change.get("ranks") or []
        plain = {key: value for key, value in change.items() if key not in _OWN}
        method = config.merge(dict(recipe), plain, f"methods.{family}")
        if not ranks:
            found[family, None] = method
        for rank in ranks:
            low = {"rank": max(ranks), "effective_rank": float(rank)}
            found[family, rank] = method | {"adapt": method["adapt"] | low}
    return found


def adaptations(
    ladder: Ladder,
    one: Rung,
    methods: Mapping[tuple[str, int | None], dict[str, Any]],
    sizes: Mapping[str, Sequence[int]],
    multiples: Mapping[str, float],
    seen: int,
) -> list[Cell]:
    """Return the adaptations of a rung to every amount of text, or to the last alone if it is the largest rung.

    Args:
      ladder: the ladder.
      one: the rung.
      methods: from `methods_at`.
      sizes: `{family: tokens of the target there are}`, increasing.
      multiples: `{family: learning rate}`, in units of the rate that the rung is pre-trained with.
      seen: how many tokens a run trains on: the text is repeated as often as it takes.
    """
    cells, unit = [], budget(one, seen, length=ladder.length, rate=ladder.rate).lr
    for (family, rank), method in methods.items():
        method = method | {"optim": method["optim"] | {"lr": multiples[family] * unit}}
        amounts = sizes[family][-1:] if one == ladder.largest else sizes[family]
        for amount in amounts:
            unique = min(amount, seen) // ladder.length * ladder.length
            kind = family if rank is None else f"{family}_r{rank}"
            cells.append(Cell(f"{one.name}_{kind}_{_amount(amount)}", family, one, rank, unique, seen, method))
    return cells


def _announce(plan: LadderPlan, gflops: float) -> None:
    """Log what the study will run, and about how long that takes at a rate of so many GFLOP/s."""
    flops = {one: len(plan.seeds) * sum(cell.flops for cell in plan.cells(one)) for one in plan.ladder.rungs}
    total, runs = sum(flops.values()), 0
    for one, share in flops.items():
        mine = len(plan.seeds) * len(plan.cells(one))
        runs += mine
        log.info("%s: %d parameters, %d runs, %.0f%% of all FLOPs", one.name, one.parameters, mine, 100 * share / total)
    minutes = max(1, round(total / (60e9 * gflops)))
    log.info("%d runs, %.2g FLOPs: about %d minutes at %g GFLOP/s, and compiling", runs, total, minutes, gflops)


def _amount(tokens: int) -> str:
    """A number of tokens in a name: 8k, 538k, 1.2M."""
    for unit, letter in _UNITS:
        if tokens >= unit:
            return f"{tokens / unit:.3g}{letter}"
    return str(tokens)
