"""The result table at the end of a run, on the console."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from adaptlab.report.claims import Verdict, verdicts_table
from adaptlab.report.words import effect, extra_names, headline, judged, number, plain, spread

__all__ = ["print_results", "results_table", "verdicts_grid"]


def results_table(summary: Mapping[str, Any]) -> Table:
    """Return the table of a study's methods, each at its representative learning rate.

    Up to four stand in columns, with all that is known of them; more stand in rows, with the main numbers.
    """
    methods = summary["methods"]
    seeds = sorted({len(row["seeds"]) for row in methods.values()})
    table = Table(title="Gain and forgetting on held-out text", caption=_units(seeds, summary))
    if len(methods) > 4:
        return _many(table, summary)
    table.add_column("")
    for name in methods:
        table.add_column(name, justify="right")

    def add(label: str, cells: list[str]) -> None:
        table.add_row(label, *cells)

    add("learning rate", [f"{row['lr']:g}" for row in methods.values()])
    add("best target gain", [spread(row["best_gain"]) for row in methods.values()])
    add("  at step", [number(row["best_step"]["mean"], 0) for row in methods.values()])
    add("final target gain", [spread(row["final_gain"]) for row in methods.values()])
    table.add_section()
    add("final upstream change", [])
    for domain in [*summary["upstream"], "mean"]:
        cells = [spread(row["final_change"][domain], sign=True) for row in methods.values()]
        add(f"  {plain(domain)}", cells)
    add("mean change at gain", [])
    for i, level in enumerate(summary["equal_gain"]["levels"]):
        cells = [spread(row["equal_gain"][i]["change"]["mean"], sign=True) for row in methods.values()]
        add(f"  {number(level)}", cells)
    table.add_section()
    for name, (label, form) in extra_names(summary).items():
        cells = [form(row["extra"].get(name, {"mean": None})["mean"]) for row in methods.values()]
        add(label, cells)
    return table


def _many(table: Table, summary: Mapping[str, Any]) -> Table:
    levels = summary["equal_gain"]["levels"]
    table.add_column("method")
    for name in ("learning rate", "best target gain", "final upstream change"):
        table.add_column(name, justify="right")
    if levels:
        table.add_column(f"at gain {number(levels[-1])}", justify="right")
    for name, row in summary["methods"].items():
        cells = [spread(row["best_gain"]), spread(row["final_change"]["mean"], sign=True)]
        cells += [spread(row["equal_gain"][-1]["change"]["mean"], sign=True)] if levels else []
        table.add_row(plain(name), f"{row['lr']:g}", *cells)
    return table


def verdicts_grid(verdicts: Mapping[str, Any]) -> Table:
    """Return the table of a study's claims, from `claims.verdicts_table`."""
    table = Table(title="Claims", caption=judged(verdicts), show_lines=True)
    for name in ("claim", "effect", "verdict", "n"):
        table.add_column(name, justify="right" if name in ("effect", "n") else "left")
    styles = {"supported": "green", "contradicted": "red"}
    for row in verdicts["claims"].values():
        verdict = Text.assemble((row["verdict"], styles.get(row["verdict"], "yellow")), f": {row['reason']}")
        table.add_row(Text(row["statement"]), Text(f"{effect(row)}\n{row['unit']}"), verdict, str(row["effect"]["n"]))
    return table


def print_results(
    summary: Mapping[str, Any], console: Console | None = None, verdicts: Mapping[str, Verdict] | None = None
) -> None:
    """Print the table, what it says in words, the verdicts on the study's claims if given, and any warnings."""
    console = Console() if console is None else console
    console.print(results_table(summary))
    for sentence in headline(summary):
        console.print(sentence, highlight=False, markup=False)
    if verdicts:
        console.print(verdicts_grid(verdicts_table(verdicts)))
    for warning in summary["warnings"]:
        console.print(f"Warning: {warning}", style="yellow", highlight=False, markup=False)


def _units(counts: list[int], summary: Mapping[str, Any]) -> str:
    if counts == [1]:
        return "nats/token; one seed, so no intervals"
    n = " or ".join(map(str, counts))
    return f"nats/token; mean and {summary['confidence']:.0%} interval over n = {n} seeds"
