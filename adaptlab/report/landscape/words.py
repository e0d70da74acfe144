"""What a study of loss landscapes found, in sentences and on the console."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from adaptlab.report.claims import Verdict, verdicts_table
from adaptlab.report.table import verdicts_grid
from adaptlab.report.words import listed, number, plain, spread

__all__ = ["headline", "print_landscape"]


def headline(summary: Mapping[str, Any]) -> list[str]:
    """Say the main results in plain sentences, without a judgement that the claims do not make."""
    said = [_basins(summary)]
    for method, pair in summary["pairs"].items():
        barrier = spread(pair["twin_barrier_target"])
        rise = spread(pair["twin_rise_target"], sign=True)
        said.append(
            f"Two models of {plain(method)} that differ in their seed only are {number(pair['twin_distance']['mean'])} "
            f"apart, with a barrier of {barrier} nats/token on the target between them (with a sign, {rise})."
        )
    for label, row in summary["spectra"].items():
        trace = row["trace"]
        said.append(
            f"The Hessian of the {plain(label)}: largest eigenvalue {row['eigenvalues'][0]:.3g} (within "
            f"{row['bounds'][0]:.1g}), trace {trace['mean']:.3g}, so a random direction has a curvature of "
            f"{trace['mean'] / row['parameters']:.2g}."
        )
    return said


def _basins(summary: Mapping[str, Any]) -> str:
    counts: dict[str, list[int]] = {}
    for row in summary["rows"]:
        inside, every = counts.setdefault(row["method"], [0, 0])
        counts[row["method"]] = [inside + row["in_basin"], every + row["n"]]
    parts = listed([f"{inside} of {every} of {plain(method)}" for method, (inside, every) in counts.items()])
    return (
        f"Tuned models in the base's basin (no barrier above {summary['tolerance']:g} nats/token on the straight line "
        f"from the base, on any domain), over all learning rates and seeds: {parts}."
    )


def print_landscape(
    summary: Mapping[str, Any], verdicts: Mapping[str, Verdict] | None = None, console: Console | None = None
) -> None:
    """Print the table of methods and learning rates, the sentences, and the verdicts."""
    console = Console() if console is None else console
    table = Table(
        title="Where tuned models lie", caption=f"nats/token; brackets: {summary['confidence']:.0%} interval over seeds"
    )
    table.add_column("method")
    for name in ("learning rate", "gain", "forgetting", "barrier", "in the basin", "curvature", "random"):
        table.add_column(name, justify="right")
    for row in summary["rows"]:
        table.add_row(
            *(plain(row["method"]), f"{row['lr']:g}", spread(row["gain"]), spread(row["forgetting"], sign=True)),
            *(spread(row["barrier"]), f"{row['in_basin']} of {row['n']}"),
            *(f"{row[name]['mean']:.3g}" for name in ("curvature_update", "curvature_random")),
        )
    console.print(table)
    for sentence in headline(summary):
        console.print(sentence, highlight=False, markup=False)
    if verdicts:
        console.print(verdicts_grid(verdicts_table(verdicts)))
    for warning in summary["warnings"]:
        console.print(f"Warning: {warning}", style="yellow", highlight=False, markup=False)
