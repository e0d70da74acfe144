"""The report: one HTML file that opens anywhere, with no network and no script."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from adaptlab.report import words
from adaptlab.report.captions import captions
from adaptlab.report.figures import embedded
from adaptlab.report.probe_figures import probe_captions
from adaptlab.report.update_captions import update_captions

__all__ = ["facts", "render_html"]


_LABELS = {
    "loss": "Loss (nats/token)",
    "perplexity": "Perplexity",
    "bits_per_byte": "Bits per byte",
    "accuracy": "Next-token accuracy",
    "tokens": "Predicted tokens",
}


def render_html(
    summary: Mapping[str, Any],
    figures: Mapping[str, Any],
    passport: Mapping[str, Any],
    config_yaml: str,
    *,
    title: str = "What adaptation gains, and what it forgets",
    question: str = "",
    settings: Mapping[str, str] | None = None,
    verdicts: Mapping[str, Any] | None = None,
) -> str:
    """Return the report of a forgetting study as one self-contained HTML page.

    Args:
      summary: from `summarise`.
      figures: from `draw.draw`.
      passport: from `passport`.
      config_yaml: the resolved config.
      title: of the page.
      question: what the study asks; by default made from the domains.
      settings: `{name: value}` of what a reader must know to judge the result: base, methods, batch, ….
      verdicts: on the study's claims, from `claims.verdicts_table`.
    """
    return (
        _environment()
        .get_template("report.html.jinja")
        .render(
            summary=summary,
            rows=list(summary["methods"].values()),
            figures=_embed(figures, summary),
            headline=words.headline(summary),
            extra=words.extra_names(summary),
            passport=facts(passport),
            resumed=passport.get("times", {}).get("resumed", []),
            changes=passport.get("changes", []),
            config=config_yaml,
            title=title,
            question=question or _question(summary),
            settings=settings or {},
            verdicts=verdicts,
            judged=words.judged(verdicts) if verdicts else "",
            level=f"{summary['confidence']:.0%}",
            labels=_LABELS,
            metrics=_metrics(summary),
        )
    )


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": words.number,
        "spread": words.spread,
        "plain": words.plain,
        "effect": words.effect,
    }
    return environment


def _embed(figures: Mapping[str, Any], summary: Mapping[str, Any]) -> list[dict[str, str]]:
    said = captions(summary) | probe_captions(summary) | update_captions(summary)
    return [
        {
            "name": name,
            "title": said[name].title,
            "text": said[name].text,
            "data": embedded(figure),
        }
        for name, figure in figures.items()
    ]


def _metrics(summary: Mapping[str, Any]) -> list[str]:
    """The metrics worth a row: the usual ones first; sums are for merging, not for reading."""
    measured = dict.fromkeys(metric for metrics in summary["base"].values() for metric in metrics)
    usual = [metric for metric in _LABELS if metric in measured]
    return usual + [m for m in measured if m not in _LABELS and not m.endswith("_sum")]


def _question(summary: Mapping[str, Any]) -> str:
    upstream = words.listed([words.plain(domain) for domain in summary["upstream"]])
    methods = words.listed(list(summary["methods"]))
    return (
        f"When a pretrained language model is adapted to {words.plain(summary['target'])} with {methods}, how "
        f"much does it gain there, and how much does it lose on {upstream}?"
    )


def facts(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested facts as (dotted name, value) rows."""
    rows = []
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            rows += facts(value, f"{prefix}{name}.")
        else:
            text = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else value
            rows.append((f"{prefix}{name}", "none" if text in (None, "", {}) else str(text)))
    return rows
