"""The figures of a study of loss landscapes and its page, which can be turned and hovered over without a network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np

from adaptlab.report import files, words
from adaptlab.report.claims import Verdict, verdicts_table
from adaptlab.report.figures import Figure, embedded, save_figure
from adaptlab.report.html import facts
from adaptlab.report.landscape import interactive
from adaptlab.report.landscape.barriers import draw_barriers, draw_lines
from adaptlab.report.landscape.captions import landscape_caption
from adaptlab.report.landscape.figures import draw_contours, draw_surface
from adaptlab.report.landscape.spectra import draw_directions, draw_forecasts, draw_spectra
from adaptlab.report.landscape.summary import Landscape
from adaptlab.report.landscape.words import headline

__all__ = ["Drawn", "draw_landscape", "render_landscape", "write_landscape"]

_BASE_LINE, _TWIN_LINE = "0 = the base, 1 = the tuned model", "0 = one seed, 1 = the other"
_EIGENVALUE = "Eigenvalue of the Hessian of the held-out loss (nats per token, per unit of squared distance)"


class Drawn(NamedTuple):
    """A figure on paper and, if it has one, its twin on the screen, a fragment of HTML."""

    figure: Figure
    interactive: str | None = None


def draw_landscape(landscape: Landscape) -> dict[str, Drawn]:
    """Return the figures of what was measured, by name; see `captions.landscape_caption` for their words."""
    summary, level = landscape.summary, landscape.summary["confidence"]
    drawn: dict[str, Drawn] = {}
    for plane, surface in landscape.surfaces.items():
        live = interactive.interactive_surface(surface, f"live_surface_of_{plane}")
        drawn[f"contours_of_{plane}"] = Drawn(draw_contours(surface))
        drawn[f"surface_of_{plane}"] = Drawn(draw_surface(surface), live)
    for name, lines, label in (("lines", landscape.lines, _BASE_LINE), ("twins", landscape.twins, _TWIN_LINE)):
        if lines:
            live = interactive.interactive_lines(lines, f"live_{name}", label, level)
            drawn[name] = Drawn(draw_lines(lines, label, level), live)
    drawn |= _over_runs(summary)
    if landscape.spectra:
        live = interactive.interactive_spectra(landscape.spectra, "live_spectra", _EIGENVALUE)
        drawn["spectra"] = Drawn(draw_spectra(landscape.spectra, _EIGENVALUE), live)
    return drawn


def _over_runs(summary: Mapping[str, Any]) -> dict[str, Drawn]:
    """The figures with a point for each run; those that diverged have no line, and no point."""
    barriers: dict[str, dict[float, list[float]]] = {}
    directions: dict[str, dict[str, list[float]]] = {}
    forecasts: dict[str, list[tuple[float, float]]] = {}
    for run in summary["runs"].values():
        if "barrier" not in run:
            continue
        method = run["method"]
        barriers.setdefault(method, {}).setdefault(run["lr"], []).append(run["barrier"])
        row = directions.setdefault(method, {"update": [], "random": []})
        row["update"].append(run["curvature_update"])
        row["random"].append(run["curvature_random"])
        forecasts.setdefault(method, []).append((run["forecast"], run["forgetting"]))
    if not barriers:
        return {}
    curvature = "Curvature on upstream text\n(nats per token, per unit of squared distance)"
    return {
        "barriers": Drawn(draw_barriers(barriers, summary["tolerance"], "Highest barrier (nats per token)")),
        "directions": Drawn(draw_directions(directions, curvature)),
        "forecasts": Drawn(draw_forecasts(forecasts)),
    }


def render_landscape(
    landscape: Landscape,
    drawn: Mapping[str, Drawn],
    passport: Mapping[str, Any],
    config_yaml: str,
    *,
    title: str,
    question: str,
    verdicts: Mapping[str, Any] | None = None,
) -> str:
    """Return the report as one self-contained page. Plotly's library is in it once, if any figure needs it.

    Args:
      landscape: what was found.
      drawn: from `draw_landscape`.
      passport: of the study.
      config_yaml: its resolved config.
      title: of the page.
      question: what the study asks.
      verdicts: on its claims, from `claims.verdicts_table`.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parents[1]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": words.number, "spread": words.spread, "plain": words.plain}
    environment.filters |= {"effect": words.effect, "short": _short}
    live = any(one.interactive for one in drawn.values())
    return environment.get_template("landscape.html.jinja").render(
        summary=landscape.summary,
        figures=[_embedded(name, one, landscape) for name, one in drawn.items()],
        headline=headline(landscape.summary),
        library=interactive.library() if live else "",
        passport=facts(passport),
        config=config_yaml,
        title=title,
        question=question,
        verdicts=verdicts,
        judged=words.judged(verdicts) if verdicts else "",
        level=f"{landscape.summary['confidence']:.0%}",
    )


def _embedded(name: str, one: Drawn, landscape: Landscape) -> dict[str, Any]:
    said = landscape_caption(name, landscape.summary, landscape.surfaces)
    data = embedded(one.figure)
    return {"name": name, "title": said.title, "text": said.text, "data": data, "live": one.interactive}


def _short(value: Any) -> str:
    """A number of any size with three digits: eigenvalues span many orders of magnitude."""
    return words.number(None) if value is None or not np.isfinite(value) else f"{value:.3g}"


def write_landscape(
    folder: Path,
    landscape: Landscape,
    passport: Mapping[str, Any],
    config_yaml: str,
    verdicts: Mapping[str, Verdict] | None = None,
    *,
    title: str,
    question: str,
) -> Path:
    """Write `landscape.json`, `figures/` and, last, `report.html`; return the page's path.

    Args:
      folder: the study's.
      landscape: what was found.
      passport: of the study.
      config_yaml: its resolved config.
      verdicts: on its claims, from `judge`.
      title: of the page.
      question: what the study asks.
    """
    files.save_json(folder / "landscape.json", landscape._replace(summary={})._asdict())
    drawn = draw_landscape(landscape)
    for name, one in drawn.items():
        save_figure(folder / "figures" / name, one.figure)
    judged = verdicts_table(verdicts) if verdicts else None
    page = render_landscape(landscape, drawn, passport, config_yaml, title=title, question=question, verdicts=judged)
    files.replace(folder / "report.html", page.encode())
    return folder / "report.html"
