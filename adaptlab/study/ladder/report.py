"""What a finished study of a ladder leaves."""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptlab import report, source
from adaptlab.report import files
from adaptlab.scaling.prediction import prediction_intervals
from adaptlab.study.ladder.labs import LadderText
from adaptlab.study.ladder.laws import Fitted
from adaptlab.study.ladder.plan import PRETRAINING
from adaptlab.study.ladder.predictions import PREDICTIONS
from adaptlab.study.ladder.sizes import budget
from adaptlab.study.provenance import finished_passport

__all__ = ["publish_ladder"]

Results = Mapping[str, Mapping[str, Any]]


def publish_ladder(
    folder: Path,
    text: LadderText,
    study: Any,
    results: Results,
    rows: Sequence[Mapping[str, Any]],
    laws: Mapping[str, Fitted],
    scored: Sequence[Mapping[str, Any]],
    seal: str,
    claims: Mapping[str, report.Claim],
    *,
    title: str,
    question: str,
) -> dict[str, Any]:
    """Judge the claims, write everything a study of a ladder leaves, show it, and return its summary.

    Args:
      folder: the study's.
      text: what all rungs shared.
      study: the study's dataclass.
      results: of all runs.
      rows: of points.csv.
      laws: fitted to all rungs.
      scored: the predictions with what came, see `adaptlab.study.ladder.predictions.score`.
      seal: their SHA-256.
      claims: what is to be decided.
      title: of the page.
      question: what the study asks.
    """
    from adaptlab.report.ladder.figures import draw_ladder  # heavy: only now
    from adaptlab.report.ladder.page import print_ladder, write_ladder

    curves = report.from_journals({name: folder / "runs" / name / "journal.jsonl" for name in results})
    judged = report.judge(claims, curves, _with_numbers(results, scored), text.domain, text.upstream)
    summary = {
        "target": text.domain,
        "upstream": text.upstream,
        "unit": "nats/token",
        "confidence": study.level,
        "rungs": _rungs(text, results),
        "laws": {name: one.table for name, one in laws.items()},
        "predictions": scored,
        "seal": seal,
        "warnings": _warnings(folder, results),
    }
    said, yaml = _passport(folder, text, study, results, seal), (folder / "config.yaml").read_text()
    files.save_json(folder / "laws.json", summary["laws"])
    report.write_report(folder, curves, results, summary, said, yaml, judged, figures=False)
    figures = draw_ladder(rows, _law_figure(laws), _lines(laws, study.level), scored)
    path = write_ladder(folder, summary, figures, said, yaml, judged, title=title, question=question)
    print_ladder(summary, judged)
    print(f"Report: {path}")
    return summary


def _with_numbers(results: Results, scored: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Runs with the numbers that claims read, under "update"; see `adaptlab.report.ladder.claims`."""
    room = {name: value for row in scored for name, value in row["room"].items()}
    found = {}
    for name, one in results.items():
        numbers = {"trainable_parameters": one["trainable_parameters"], "interval_room": room.get(name)}
        numbers |= {"data_transferred": one["data_transferred"]}
        if one["data_transferred"] is not None:
            numbers["transfer_is_bound"] = float(one["effective_data_bound"] == "at least")
        found[name] = {**one, "update": {key: float(v) for key, v in numbers.items() if v is not None}}
    return found


def _rungs(text: LadderText, results: Results) -> list[dict[str, Any]]:
    rungs, ladder = [], text.ladder
    for one in ladder.rungs:
        mine = [r for r in results.values() if r["family"] == PRETRAINING and r["rung"] == one.dial]
        cells = []
        for wanted in ladder.budgets:
            how = budget(one, wanted, length=ladder.length, rate=ladder.rate, batch=ladder.batch)
            losses = [r["upstream_loss"] for r in mine if r["tokens"] == how.tokens and r["upstream_loss"] is not None]
            if losses:
                cells.append({**how._asdict(), "loss": float(np.mean(losses))})
        shape = {"width": one.shape.width, "depth": one.shape.depth, "parameters": one.parameters}
        rungs.append({"name": one.name, **shape, "pretraining": cells})
    return rungs


def _warnings(folder: Path, results: Results) -> list[str]:
    lost = [name for name, one in results.items() if one["diverged_at"] is not None]
    said = [f"{len(lost)} runs diverged and count in no law: {', '.join(lost)}."] if lost else []
    sealed = json.loads((folder / PREDICTIONS).read_text())
    silent = [row["cell"] for row in sealed["without_interval"]]
    silent += [table["says"] or name for name, table in sealed["laws"].items() if table["problem"]]
    if silent:
        said.append(f"Not predicted, for want of a finite interval or of a law: {', '.join(silent)}.")
    return said


def _passport(folder: Path, text: LadderText, study: Any, results: Results, seal: str) -> dict[str, Any]:
    """The passport; its base is the ladder: the digest over the digests of all rungs' weights."""
    weights = {one.name: folder / "bases" / one.name / "model.safetensors" for one in text.ladder.rungs}
    digests = {name: source.sha256_of(path) for name, path in weights.items()}
    base = {
        "name": "ladder",
        "sha256": hashlib.sha256("".join(digests.values()).encode()).hexdigest(),
        "made": "here",
        "rungs": digests,
    }
    said = finished_passport(study, results, folder, base=base, corpora=text.corpora)
    return said | {"predictions": {"sha256": seal}}


def _law_figure(laws: Mapping[str, Fitted]) -> Any:
    """The law of pre-training as the figures of scaling laws take it: the largest rung is drawn as held out."""
    from adaptlab.report.scaling.figures import Band, Law

    fitted = laws.get(PRETRAINING)
    if fitted is None or fitted.fit is None:
        return None
    fit = fitted.fit

    def band(x: Mapping[str, np.ndarray]) -> Band:
        found = prediction_intervals(fit, x)
        return Band(found.value, found.low, found.high)

    return Law(
        name=fit.form.name,
        y="Upstream loss (nats per token)",
        x=fit.points.x,
        values=fit.points.y,
        held_out=np.array([row["split"] == "largest" for row in fitted.rows]),
        band=band,
        names={name: column.replace("_", " ").capitalize() for name, column in fitted.law.x.items()},
        profiles={},
        estimates=fit.values,
        limit=0.0,
        log=fit.space == "log",
    )


def _lines(laws: Mapping[str, Fitted], level: float) -> dict[str, Any]:
    """The fitted laws of target loss by method, of columns of points.csv."""
    lines = {}
    for fitted in laws.values():
        family, rank = (fitted.law.where.get(key) for key in ("family", "rank"))
        if fitted.fit is None or fitted.law.y != "target_loss" or not fitted.law.predicts:
            continue
        lines[family if rank is None else f"{family} r{rank}"] = functools.partial(_line, fitted, level)
    return lines


def _line(fitted: Fitted, level: float, columns: Mapping[str, np.ndarray]) -> Any:
    from adaptlab.report.scaling.figures import Band

    assert fitted.fit is not None
    x = {name: columns[column] for name, column in fitted.law.x.items()}
    found = prediction_intervals(fitted.fit, x, level=level)
    return Band(found.value, found.low, found.high)
