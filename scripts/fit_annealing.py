"""Fit a law of learning-rate annealing to some loss curves and predict others; write `fit.json`, curves and a figure.

    python -m scripts.fit_annealing data=curves.csv schedule=schedule step=step lr=lr y=loss
        train=[cosine,constant,two_stage] test=[wsd]
    python -m scripts.fit_annealing data=curves.csv law=momentum 'test=[wsd]'
    python -m scripts.fit_annealing data=curves.csv law=multi_power estimate=early_stopping 'test=[wsd]'

The table has a row for each schedule and step, with the learning rate at that step. `fit_curves.csv` has the measured
and predicted losses of every row.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import adaptlab as al

_TEXTS = ("schedule_column", "step", "lr", "y", "where", "train", "test")


@dataclass
class Fitting:
    """The keys of conf/fit_annealing.yaml.

    Attributes:
      law: one of conf/law.
      data: a file, a folder of runs, or `wandb:entity/project`.
      schedule_column: the column that names the schedule (of runs: `run`); on the command line, `schedule=`.
      step, lr, y: columns, or expressions of columns.
      where: a condition that rows must meet.
      train, test: names of schedules to fit to and to predict.
      warmup: the steps of the warm-up, if not those in which the learning rate rises.
      estimate: `minimise`, or `early_stopping`: the multi-power law's published estimate for few schedules, a short
        descent from a simpler law, see `adaptlab.scaling.early_stopping`.
      loss, delta, space, starts, seed: how to fit, see `adaptlab.scaling.fit`.
      level: of intervals.
      figures: whether to draw.
      out: the file of results; curves and the figure stand beside it.
    """

    law: dict[str, Any]
    data: str
    schedule_column: str
    step: str
    lr: str
    y: str
    where: str | None
    train: list[str] | None
    test: list[str] | None
    warmup: float | None
    estimate: Literal["minimise", "early_stopping"]
    loss: Literal["huber", "huber_likelihood", "squared", "log_cosh", "tukey"]
    delta: float
    space: Literal["log", "linear"]
    starts: int
    seed: int
    level: float
    figures: bool
    out: str


def overrides(arguments: Sequence[str]) -> list[str]:
    """Return a command line with its texts quoted for Hydra, and `schedule=`, which is a group of conf, by its key."""
    named = [f"schedule_column={a[9:]}" if a.startswith("schedule=") else a for a in arguments]
    return al.config.quoted(named, _TEXTS)


def fit_file(job: Fitting, folder: Path) -> dict[str, Any]:
    """Read, fit, write and print; return what `fit.json` holds.

    Raises:
      ValueError: columns, rows or schedules that cannot be meant.
    """
    from rich.console import Console

    from adaptlab.report import files
    from adaptlab.report.scaling import annealing, inputs
    from adaptlab.report.scaling.results import law_table, quotation

    table = inputs.load_rows(job.data, every_step=True)
    columns = {"schedule": job.schedule_column, "step": job.step, "lr": job.lr, "y": job.y}
    curves = annealing.read_curves(table, **columns, where=job.where, warmup=job.warmup)
    train, test = annealing.split_schedules(list(curves), job.train, job.test)
    how = {name: getattr(job, name) for name in ("estimate", "loss", "delta", "space", "starts", "seed", "level")}
    found = annealing.fit_annealing(_law(job.law), curves, train, test, **how)
    path = folder / job.out
    path = path if path.suffix == ".json" else path / "fit.json"
    files.save_json(path, found.result)
    written = [path, path.with_name(f"{path.stem}_curves.csv")]
    files.replace(written[1], annealing.curves_csv(found).encode())
    if job.figures:
        from adaptlab.report.figures import save_figure

        save_figure(path.with_name(f"{path.stem}_curves"), annealing.draw_annealing(found))
        written.append(path.with_name(f"{path.stem}_curves.png"))
    console = Console()
    console.print(law_table(found.result, found.fitted, job.level, job.y))
    console.print(annealing.schedules_table(found))
    said = found.result["diagnostics"]
    lines = [quotation(found.result, found.fitted, job.level)]
    lines += [f"Warning: {one}" for one in (*said["identifiability"]["sentences"], *said["warnings"])]
    for line in (*lines, *map(str, written)):
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    return found.result


def _law(node: dict[str, Any]) -> Any:
    """The law as a function of what it is fitted to."""
    return lambda exposure: al.config.instantiate(node, exposure=exposure)


@al.config.main("fit_annealing", Fitting)
def main(node: dict[str, Any], folder: Path) -> None:
    """Fit a law to curves."""
    al.runtime.configure()
    fit_file(Fitting(**node), folder)


if __name__ == "__main__":
    sys.argv[1:] = overrides(sys.argv[1:])
    main()
