"""Fit a scaling law to a table of points; write `fit.json` and figures, print a table and a sentence to quote.

    python -m scripts.fit_scaling data=points.csv form=chinchilla x=[N,D] y=loss where='split==train' drop_highest=5
        loss=huber space=log bootstrap=1000 holdout=largest:20% at='[{N: 1e9, D: 2e10}]'
    python -m scripts.fit_scaling data=points.csv form=power x=tokens group=model
    python -m scripts.fit_scaling data=runs.csv x=[N,'D=C/(6*N)']
    python -m scripts.fit_scaling data=wide.csv wide=D form=rectified x=D where='D>=200' group=model

Inputs and outcomes are columns or expressions of columns (`adaptlab.scaling.columns`). Of runs (a study's folder, W&B)
the last value of each metric is a column. What `fit.json` holds is said in docs/scaling.md.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import adaptlab as al

_TEXTS = ("x", "y", "where", "holdout", "sigma", "weights")


@dataclass
class Fitting:
    """The keys of conf/fit_scaling.yaml.

    Attributes:
      form: the law, one of conf/form.
      data: a file, a folder of runs, or `wandb:entity/project`.
      x: for each input of the form a column or an expression; null takes columns of the inputs' names.
      y: the outcome, likewise.
      where: a condition that rows must meet.
      drop_highest: how many rows of the highest outcomes are left out (of each group).
      group: a column; one law is fitted to the rows of each of its values.
      sigma, weights, runs: columns of what is known of the noise.
      duplicates: what rows of equal inputs are.
      checks: whether columns that look swapped are an error.
      wide: what the numbers are that columns are called by, such as D; `y` then names what is in the cells.
      every_step: whether each step of a run is a row, not its last values only.
      loss, delta, space, starts, seed: how to fit, see `adaptlab.scaling.fit`.
      holdout: which points to judge by and not to fit.
      bootstrap: how many refits intervals come from; 0 takes them from the profile of the objective.
      level: of intervals.
      at: where to predict: inputs, or columns from which they follow.
      figures: whether to draw.
      out: the file of results; figures stand beside it.
    """

    form: dict[str, Any]
    data: str
    x: str | list[str] | dict[str, str] | None
    y: str
    where: str | None
    drop_highest: int
    group: str | None
    sigma: str | None
    weights: str | None
    runs: str | None
    duplicates: Literal["error", "keep", "mean"]
    checks: bool
    wide: str | None
    every_step: bool
    loss: Literal["huber", "huber_likelihood", "squared", "log_cosh", "tukey"]
    delta: float
    space: Literal["log", "linear"]
    starts: int
    seed: int
    holdout: str | None
    bootstrap: int
    level: float
    at: list[dict[str, float | int]]
    figures: bool
    out: str


def overrides(arguments: Sequence[str]) -> list[str]:
    """Return a command line with the expressions quoted for Hydra."""
    return al.config.quoted(arguments, _TEXTS)


def fit_file(job: Fitting, folder: Path) -> dict[str, Any]:
    """Read, fit, write and print; return what `fit.json` holds.

    Raises:
      ValueError: columns, rows or values that cannot be meant, or points that cannot determine the law.
    """
    from rich.console import Console

    from adaptlab.report import files
    from adaptlab.report.scaling import inputs
    from adaptlab.report.scaling.laws import draw_laws, fit_laws, prepare, print_laws

    form = al.config.instantiate(job.form)
    table = inputs.load_rows(job.data, job.every_step)
    table = table if job.wide is None else al.scaling.table.melted(table, job.wide, job.y)
    prepared = prepare(table, form, **_rows_of(job))
    how = {name: getattr(job, name) for name in ("loss", "delta", "space", "starts", "seed")}
    laws = fit_laws(form, prepared, bootstrap=job.bootstrap, level=job.level, **how)
    results = {key: law.result for key, law in laws.items()}
    whole = next(iter(results.values())) if job.group is None else {"form": form.name, "groups": results}
    path = folder / job.out
    path = path if path.suffix == ".json" else path / "fit.json"
    files.save_json(path, whole)
    drawn = draw_laws(laws, path) if job.figures else []
    console = Console()
    print_laws(laws, console, job.group, job.level)
    console.print(f"{path}" + "".join(f"\n{figure}" for figure in drawn), highlight=False, markup=False, soft_wrap=True)
    return whole


def _rows_of(job: Fitting) -> Mapping[str, Any]:
    names = (
        *("x", "y", "where", "drop_highest", "group", "sigma", "weights", "runs"),
        *("duplicates", "checks", "space", "holdout", "at"),
    )
    return {name: getattr(job, name) for name in names}


@al.config.main("fit_scaling", Fitting)
def main(node: dict[str, Any], folder: Path) -> None:
    """Fit a law to a table."""
    al.runtime.configure()
    fit_file(Fitting(**node), folder)


if __name__ == "__main__":
    sys.argv[1:] = overrides(sys.argv[1:])
    main()
