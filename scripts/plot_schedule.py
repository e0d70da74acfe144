"""A figure and a table of learning-rate schedules, and of the momentum that goes with them.

    python -m scripts.plot_schedule schedule=wsd [schedule.decay=0.3] [total_steps=1000] [out=FILE.png]
    python -m scripts.plot_schedule 'schedules=[cosine,wsd,one_cycle]'

Learning rates are factors of their peak. Several are drawn as their yaml files in conf/schedule have them.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import adaptlab as al


@dataclass
class Plot:
    """The keys of conf/plot_schedule.yaml.

    Attributes:
      schedule: the schedule to draw.
      schedules: names of files in conf/schedule to draw in place of it.
      total_steps: the number of updates.
      out: the file to write; its name ends in .png or .svg.
    """

    schedule: dict[str, Any]
    schedules: list[str] | None
    total_steps: int
    out: str


def curves(job: Plot) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Return `{name: value at each update}` of learning rates and of momenta."""
    if job.schedules is None:
        nodes = {_name(job.schedule): job.schedule}
    else:
        nodes = {name: _named(name) for name in job.schedules}
    factors = {name: node for name, node in nodes.items() if not _is_momentum(node)}
    momenta = {name: node for name, node in nodes.items() if _is_momentum(node)}
    momenta |= {name: pair for name, node in factors.items() if (pair := _momentum_of(node))}
    return _values(factors, job.total_steps), _values(momenta, job.total_steps)


def table(columns: dict[str, np.ndarray], total_steps: int) -> str:
    """Return the values at up to eleven updates, evenly spread from the first to the last."""
    steps = sorted({round(i * (total_steps - 1) / 10) for i in range(11)})
    widths = [max(12, len(name) + 2) for name in columns]
    lines = ["update".rjust(9) + "".join(name.rjust(w) for name, w in zip(columns, widths, strict=True))]
    for step in steps:
        cells = [f"{values[step]:.6g}".rjust(w) for values, w in zip(columns.values(), widths, strict=True)]
        lines.append(str(step).rjust(9) + "".join(cells))
    return "\n".join(lines)


def _named(name: str) -> dict[str, Any]:
    choices = sorted(path.stem for path in (al.config.conf_dir() / "schedule").glob("*.yaml"))
    if name not in choices:
        raise al.config.ConfigError(
            f"schedules: conf/schedule has no {name!r}.{al.config.nearest(name, choices)} It has: {choices}."
        )
    return al.config.compose(f"schedule/{name}")["schedule"]


def _name(node: dict[str, Any]) -> str:
    return node["_target_"].rpartition(".")[2]


def _is_momentum(node: dict[str, Any]) -> bool:
    return _name(node).endswith("_momentum")


def _momentum_of(node: dict[str, Any]) -> dict[str, Any] | None:
    """The momentum of the same shape as a schedule: the factory that is called the same, with what both take."""
    name = f"{_name(node)}_momentum"
    if not hasattr(al.optim, name):
        return None
    target = f"adaptlab.optim.{name}"
    defaults = al.config.validate({"_target_": target})
    return defaults | {key: value for key, value in node.items() if key in defaults and key != "_target_"}


def _values(nodes: dict[str, dict[str, Any]], total_steps: int) -> dict[str, np.ndarray]:
    import jax  # heavy: not for --help

    schedules = {name: al.config.instantiate(al.config.validate(node)) for name, node in nodes.items()}
    steps = jax.numpy.arange(total_steps)
    return {
        name: np.asarray(jax.vmap(lambda step, one=one: one(step, total_steps))(steps))
        for name, one in schedules.items()
    }


@al.config.main("plot_schedule", Plot)
def main(node: dict[str, Any], folder: Path) -> None:
    """Write the figure; print its path and the table."""
    from adaptlab.report import figures, files, schedule_plot  # heavy: not for --help

    job, path = Plot(**node), Path(node["out"])
    if path.suffix not in (".png", ".svg"):
        raise ValueError(f"out={job.out!r} must end in .png or .svg.")
    if job.total_steps < 1:
        raise ValueError(f"total_steps={job.total_steps} must be at least 1.")
    factors, momenta = curves(job)
    figure = schedule_plot.draw_schedules(factors, momenta)
    files.replace(path, figures.render(figure, path.suffix[1:]))
    print(path)
    print(table(factors | {f"{name} (momentum)": values for name, values in momenta.items()}, job.total_steps))


if __name__ == "__main__":
    main()
