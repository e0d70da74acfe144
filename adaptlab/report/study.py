"""Everything a study leaves on disk, written in one call."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from adaptlab.report import files
from adaptlab.report.claims import Verdict, verdicts_table
from adaptlab.report.curves import save_curves

__all__ = ["write_report"]


def write_report(
    study_dir: str | os.PathLike,
    curves: pa.Table,
    runs: Mapping[str, Mapping[str, Any]],
    summary: Mapping[str, Any],
    passport: Mapping[str, Any],
    config_yaml: str,
    verdicts: Mapping[str, Verdict] | None = None,
    figures: bool = True,
    updates: pa.Table | None = None,
    **page: Any,
) -> Path:
    """Write a study's results and return the path of its report (of `summary.json` if there are no figures).

    Writes `curves.parquet`, `updates.parquet` (if updates were measured), `runs.json`, `passport.json`, `config.yaml`,
    `verdicts.json` (if claims were judged), `summary.json` (verdicts included), `figures/*.png`, `figures/*.svg` and
    `report.html`, each replaced whole or not at all, the report last: if it is there, so is all it speaks of. In JSON,
    a number that does not exist (nan, infinity) is null.

    Args:
      study_dir: the study's directory.
      curves: from `report.curves`.
      runs: the attributes of each run; see `summarise`.
      summary: from `summarise`.
      passport: from `passport`.
      config_yaml: the resolved config.
      verdicts: on the study's claims, from `judge`.
      figures: False leaves out the figures and the page, as for a member of a sweep, whose own report has them.
      updates: what was measured of updates, see `report.updates`.
      **page: `title`, `question` and `settings` of the page; see `render_html`.
    """
    folder = Path(study_dir)
    judged = verdicts_table(verdicts) if verdicts else None
    save_curves(folder / "curves.parquet", curves)
    if updates is not None:
        save_curves(folder / "updates.parquet", updates)
    files.replace(folder / "config.yaml", config_yaml.encode())
    said = {"verdicts": judged} if judged else {}
    for name, value in {"runs": runs, "passport": passport, **said, "summary": {**summary, **said}}.items():
        files.save_json(folder / f"{name}.json", value)
    if not figures:
        return folder / "summary.json"
    # matplotlib and jinja2 are slow to import and needed only now.
    from adaptlab.report.draw import draw
    from adaptlab.report.figures import save_figure
    from adaptlab.report.html import render_html

    drawn = draw(curves, summary, updates)
    for name, figure in drawn.items():
        save_figure(folder / "figures" / name, figure)
    page_html = render_html(summary, drawn, passport, config_yaml, verdicts=judged, **page)
    files.replace(folder / "report.html", page_html.encode())
    return folder / "report.html"
