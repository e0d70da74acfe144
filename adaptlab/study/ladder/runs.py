"""The runs of a rung: its pre-training at every budget, the base that comes of it, and the adaptations of that base."""

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from adaptlab import config, models, report
from adaptlab.adapt.files import load_delta
from adaptlab.source import cache_dir, sha256_of
from adaptlab.study.ladder.labs import TOKENIZER, LadderText, adaptation_lab, ladder_base, pretraining_lab, with_text
from adaptlab.study.ladder.plan import Cell, LadderPlan
from adaptlab.study.ladder.sizes import Rung
from adaptlab.study.members import members
from adaptlab.study.settings import Replication, Training
from adaptlab.study.spread import run_members

__all__ = ["adapt_rung", "keep_bases", "pretrain_rung", "run_rung"]

log = logging.getLogger(__name__)

WEIGHTS = "model.safetensors"

Results = dict[str, dict[str, Any]]


def run_rung(text: LadderText, plan: LadderPlan, one: Rung, study: Any, folder: Path) -> Results:
    """Pre-train a rung and adapt its base; what has finished is not run again.

    Args:
      text: what all rungs share.
      plan: what is run.
      one: the rung.
      study: has `pretraining`, `replication` and `wandb`.
      folder: the study's.
    """
    how = config.instantiate(study.replication)
    results = pretrain_rung(text, plan.pretraining[one], plan.seeds, folder, study.wandb, how, **study.pretraining)
    return results | adapt_rung(text, plan.adaptations[one], plan.seeds, plan.training, folder, study.wandb, how)


def pretrain_rung(
    text: LadderText,
    cells: Sequence[Cell],
    seeds: Sequence[int],
    folder: Path,
    wandb: Mapping[str, Any],
    replication: Replication,
    *,
    measurements: int = 4,
    save_every: int = 200,
) -> Results:
    """Train a rung from random weights at every budget with every seed, and write its base.

    The base is the run of the first seed at the last budget: `folder/bases/<rung>`, a folder that transformers reads.

    Args:
      text: what all rungs share.
      cells: from `pretraining_cells`.
      seeds: of weights and order of the text.
      folder: the study's.
      wandb: the settings of the W&B mirror.
      replication: how runs that differ in their seed only are run together.
      measurements: how often held-out text is measured after the start of a run.
      save_every: steps between checkpoints.
    """
    results: Results = {}
    for cell in cells:
        lab = pretraining_lab(text, cell, measurements=measurements, save_every=save_every)
        runs = members({cell.name: cell.method}, seeds)
        done = run_members(lab, runs, folder, wandb, replication)
        results |= {name: _described(folder, name, result, cell, text) for name, result in done.items()}
    first = members({cells[-1].name: cells[-1].method}, seeds[:1])[0].name
    _write_base(folder, cells[-1].rung, folder / "runs" / first, text)
    return results


def adapt_rung(
    text: LadderText,
    cells: Sequence[Cell],
    seeds: Sequence[int],
    training: Training,
    folder: Path,
    wandb: Mapping[str, Any],
    replication: Replication,
) -> Results:
    """Adapt a rung's base in every way to every amount of text, with every seed.

    Args:
      text: what all rungs share.
      cells: from `adaptations`, of one rung whose base has been written.
      seeds: of new weights and of the order of the text.
      training: how long, on how much at a time.
      folder, wandb, replication: as in `pretrain_rung`.
    """
    results: Results = {}
    lab = adaptation_lab(text, ladder_base(folder / "bases" / cells[0].rung.name, cells[0].rung), training)
    by_amount: dict[int, list[Cell]] = {}
    for cell in cells:
        by_amount.setdefault(cell.unique_tokens, []).append(cell)
    for amount, mine in by_amount.items():
        of = {cell.name: cell for cell in mine}
        runs = members({name: cell.method for name, cell in of.items()}, seeds)
        some = with_text(lab, max(training.batch_size, amount // training.length))
        done = run_members(some, runs, folder, wandb, replication)
        results |= {name: _described(folder, name, result, of[result["method"]], text) for name, result in done.items()}
    return results


def keep_bases(folder: Path, rungs: Sequence[Rung]) -> Path:
    """Copy finished bases into the cache, `bases/ladder/<rung>`, where other studies read them as `base=ladder`.

    A base with other weights that lies there is kept beside, as `<rung>_<the first digits of its SHA-256>`.
    """
    home = cache_dir() / "bases" / "ladder"
    for one in rungs:
        made, target = folder / "bases" / one.name, home / one.name
        partial = target.with_name(f".{one.name}.{os.getpid()}")
        shutil.copytree(made, partial / "model")
        if (target / "model" / WEIGHTS).exists():
            old = sha256_of(target / "model" / WEIGHTS)
            aside = home / f"{one.name}_{old[:8]}"
            if old != sha256_of(made / WEIGHTS) and not aside.exists():
                os.replace(target, aside)
                log.warning("%s is of this study now; what lay there is %s", target, aside)
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    return home


def _write_base(folder: Path, one: Rung, run: Path, text: LadderText) -> None:
    """Write a run's weights as a base, whole or not at all, unless it has been written before."""
    target = folder / "bases" / one.name
    if target.exists():
        return
    partial = target.with_name(f".{one.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    models.save_hf(partial, one.shape, load_delta(run / "delta.safetensors").delta, context=text.ladder.length)
    shutil.copy(text.tokenizer, partial / TOKENIZER)
    os.replace(partial, target)


def _described(folder: Path, name: str, result: Mapping[str, Any], cell: Cell, text: LadderText) -> dict[str, Any]:
    """A result with what its cell says of it, and what was measured at its best step, its start and its end."""
    rows = report.read_journal(folder / "runs" / name / "journal.jsonl")
    target = f"held_out/{text.domain}/loss"
    measured = [row for row in rows if target in row.metrics]

    def upstream(row: Any) -> float:
        return float(np.mean([row.metrics[f"held_out/{domain}/loss"] for domain in text.upstream]))

    diverged = result["diverged_at"] is not None
    numbers = {
        "target_loss": None if diverged else min(row.metrics[target] for row in measured),
        "final_target_loss": None if diverged else measured[-1].metrics[target],
        "upstream_loss": None if diverged else upstream(measured[-1]),
        "base_upstream_loss": upstream(measured[0]),
    }
    numbers["forgetting"] = None if diverged else numbers["upstream_loss"] - numbers["base_upstream_loss"]
    return {**result, **cell.about(text.ladder.largest), **numbers}
