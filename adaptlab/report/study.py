"""Everything a study leaves on disk, written in one call."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from adaptlab.report import files
from adaptlab.report.curves import save_curves

__all__ = ["write_report"]


def write_report(
    study_dir: str | os.PathLike,
    curves: pa.Table,
    runs: Mapping[str, Mapping[str, Any]],
    summary: Mapping[str, Any],
    passport: Mapping[str, Any],
    config_yaml: str,
    **page: Any,
) -> Path:
    """Write a study's results and return the path of its report.

    Writes `curves.parquet`, `runs.json`, `summary.json`, `passport.json`, `config.yaml`, `figures/*.png`,
    `figures/*.svg` and `report.html`, each replaced whole or not at all, the report last: if it is there,
    so is all it speaks of. In JSON, a number that does not exist (nan, infinity) is null.

    Args:
      study_dir: the study's directory.
      curves: from `report.curves`.
      runs: the attributes of each run; see `summarise`.
      summary: from `summarise`.
      passport: from `passport`.
      config_yaml: the resolved config.
      **page: `title`, `question` and `settings` of the page; see `render_html`.
    """
    # matplotlib and jinja2 are slow to import and needed only now.
    from adaptlab.report.figures import draw, save_figure
    from adaptlab.report.html import render_html

    folder = Path(study_dir)
    save_curves(folder / "curves.parquet", curves)
    for name, value in (("runs", runs), ("summary", summary), ("passport", passport)):
        files.save_json(folder / f"{name}.json", value)
    files.replace(folder / "config.yaml", config_yaml.encode())
    figures = draw(curves, summary)
    for name, figure in figures.items():
        save_figure(folder / "figures" / name, figure)
    page_html = render_html(summary, figures, passport, config_yaml, **page)
    files.replace(folder / "report.html", page_html.encode())
    return folder / "report.html"
