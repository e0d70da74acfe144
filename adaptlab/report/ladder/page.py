"""The page of a study of a ladder: what was predicted and how it came, the laws, the verdicts, the figures."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2

from adaptlab.report import files, words
from adaptlab.report.claims import Verdict, verdicts_table
from adaptlab.report.figures import Figure, embedded, save_figure

__all__ = ["ladder_headline", "print_ladder", "write_ladder"]

_NOTHING = 1e-30
_CAPTIONS = {
    "pretraining_law": "Pre-training. Upstream loss against parameters and against tokens; lines: the law at three "
    "levels of the other, with 95% bands for a new run; open squares: the largest rung.",
    "pretraining_isoflop": "Equal compute. The law along lines of constant C = 6 N D, with the optimum of each.",
    "pretraining_residuals": "Residuals of the pre-training law.",
    "target_text": "Target loss at the best step measured against the text there is, with Student intervals over "
    "seeds; lines: the joint laws of each method, with bands for a new run.",
    "transfer": "Effective data transferred. Open triangles: at least that much, since the loss is below the lowest "
    "from scratch.",
    "forgetting": "Change of upstream loss at the end against the parameters that train, means over seeds.",
    "predictions": "Predictions, sealed before the largest rung was trained, and its runs.",
}


def ladder_headline(summary: Mapping[str, Any]) -> list[str]:
    """Return the main result in sentences."""
    scored = summary["predictions"]
    said = []
    if scored:
        inside = sum(row["inside"] for row in scored)
        worst = max(scored, key=lambda row: row["relative_error"])
        size = words.count(summary["rungs"][-1]["parameters"])
        said.append(
            f"Of {len(scored)} losses of the largest rung ({size} parameters), "
            f"predicted before it was trained, {inside} came inside their {summary['confidence']:.0%} intervals; the "
            f"largest error was {worst['relative_error']:.1%} ({worst['cell']})."
        )
    for name, table in summary["laws"].items():
        if table.get("problem"):
            said.append(f"No law of {table['says'] or name}: {table['problem']}")
        elif name == "transfer":
            alpha, beta = (table["parameters"][key] for key in ("alpha", "beta"))
            said.append(
                f"Effective data transferred grows with the text fine-tuned on to the power {_interval(alpha)} and "
                f"with parameters to the power {_interval(beta)}."
            )
    return said


def _interval(one: Mapping[str, Any]) -> str:
    value, low, high = (_short(one[key]) for key in ("value", "low", "high"))
    return value if low == high else f"{value} [{low}, {high}]"


def _short(value: Any) -> str:
    """A number of any size with three digits; what a fit has left of a parameter at its bound is 0."""
    if value is not None and abs(value) < _NOTHING:
        return "0"
    if value is None or not math.isfinite(value):
        return words.number(None)
    return f"{value:.3g}".replace("-", "\N{MINUS SIGN}")


def write_ladder(
    folder: Path,
    summary: Mapping[str, Any],
    figures: Mapping[str, Figure],
    passport: Mapping[str, Any],
    config_yaml: str,
    verdicts: Mapping[str, Verdict] | None,
    *,
    title: str,
    question: str,
) -> Path:
    """Write `figures/` and, last, `report.html`, one self-contained page; return its path.

    Args:
      folder: the study's.
      summary: from `adaptlab.study.publish_ladder`.
      figures: from `adaptlab.report.ladder.figures.draw_ladder`.
      passport: of the study.
      config_yaml: its resolved config.
      verdicts: on its claims.
      title: of the page.
      question: what the study asks.
    """
    for name, figure in figures.items():
        save_figure(folder / "figures" / name, figure)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": words.number, "count": words.count, "short": _short, "interval": _interval}
    environment.filters |= {"effect": words.effect, "plain": words.plain}
    judged = verdicts_table(verdicts) if verdicts else None
    page = environment.get_template("ladder.html.jinja").render(
        summary=files.to_json(summary),
        headline=ladder_headline(summary),
        figures=_embedded(figures),
        passport=json.dumps(files.to_json(passport), indent=1, ensure_ascii=False),
        config=config_yaml,
        verdicts=judged,
        judged=words.judged(judged) if judged else "",
        title=title,
        question=question,
        level=f"{summary['confidence']:.0%}",
    )
    files.replace(folder / "report.html", page.encode())
    return folder / "report.html"


def _embedded(figures: Mapping[str, Figure]) -> Sequence[dict[str, str]]:
    return [
        {
            "name": name,
            "text": _CAPTIONS[name],
            "data": embedded(figure),
        }
        for name, figure in figures.items()
    ]


def print_ladder(summary: Mapping[str, Any], verdicts: Mapping[str, Verdict] | None) -> None:
    """Print the predictions with their scores, the laws and the verdicts."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="Predicted before the largest rung was trained")
    for column in ("of", "predicted", "measured", "error", "inside"):
        table.add_column(column, justify="left" if column == "of" else "right")
    for row in summary["predictions"]:
        inside = "yes" if row["inside"] else "no"
        table.add_row(row["cell"], _interval(row), _short(row["mean"]), f"{row['relative_error']:.1%}", inside)
    console.print(table)
    laws = Table(title="Laws")
    for column in ("law", "form", "points", "parameters"):
        laws.add_column(column, justify="right" if column == "points" else "left", overflow="fold")
    for name, one in summary["laws"].items():
        said = ", ".join(f"{key} = {_interval(value)}" for key, value in one["parameters"].items())
        laws.add_row(name, one["form"], str(one["n_points"]), said or one["problem"])
    console.print(laws)
    for one in (verdicts or {}).values():
        console.print(f"{one.verdict}: {one.claim.statement}", highlight=False)
