"""One member, from its folder to its result: resumable at any moment, finished once."""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adaptlab import adapt, report, tree
from adaptlab.study.lab import Lab
from adaptlab.study.members import Member
from adaptlab.train import Compiled, Fitted, Run, Writer, fit, open_checkpoints

__all__ = ["run_member"]

_RESULT = "result.json"


def run_member(
    lab: Lab, member: Member, compiled: Compiled, probe: Any, folder: Path, mirrors: Any
) -> dict[str, Any]:
    """Train one member and return its result, or return the result of a member that has finished before.

    Leaves in `folder`: `journal.jsonl` (its curves), `delta.safetensors` (what it trained) and `result.json`; its
    checkpoints are removed once the result is on disk.

    Args:
      lab: what it shares with the others.
      member: what it is.
      compiled: its program.
      probe: `(numbers, base, delta) -> metrics`.
      folder: its own.
      mirrors: `() -> Sink`, opens what else the curves go to.
    """
    if (folder / _RESULT).exists():
        return json.loads((folder / _RESULT).read_text())
    folder.mkdir(parents=True, exist_ok=True)
    training = lab.training
    run = Run(
        program=compiled.program,
        numbers=member.numbers,
        seed=member.seed,
        base=lab.params,
        batches=lab.batches(member.seed),
        probe=probe,
        total_steps=lab.total_steps,
        measure_every=training.measure_every,
        save_every=training.save_every,
    )
    checkpoints = open_checkpoints(folder / "checkpoints", keep=training.keep)
    sinks: list[report.Sink] = []

    def open_writer(step: int) -> Writer:
        journal = folder / "journal.jsonl"
        report.truncate_journal(journal, step)
        sinks.append(report.tee(report.journal(journal), mirrors()))
        return Writer(sinks[0].write, sinks[0].flush)

    try:
        fitted = fit(run, checkpoints, open_writer)
    finally:
        checkpoints.close()
        for sink in sinks:
            sink.close()
    result = _result(lab, member, compiled, fitted, folder)
    _replace_json(folder / _RESULT, result)
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def _result(lab: Lab, member: Member, compiled: Compiled, fitted: Fitted, folder: Path) -> dict[str, Any]:
    digest = adapt.save_delta(
        folder / "delta.safetensors",
        jax.device_get(fitted.state.delta),
        adapt=member.adapt,
        base=lab.pretrained.fingerprint,
    )
    tokens = lab.training.batch_size * lab.training.length
    return {
        "method": member.method,
        "lr": member.lr,
        "seed": member.seed,
        "numbers": member.numbers,
        "steps": lab.total_steps,
        "trainable_parameters": tree.count(fitted.state.delta),
        "flops": compiled.flops * lab.total_steps,
        "flops_per_token": compiled.flops / tokens,
        "tokens_per_second": tokens / float(np.median(fitted.step_seconds)) if fitted.step_seconds else None,
        "peak_memory_bytes": compiled.memory_bytes,
        "compile_seconds": compiled.seconds,
        "first_step_seconds": fitted.first_step_seconds,
        "resumed_at": fitted.resumed_at,
        "diverged_at": fitted.diverged_at,
        "delta_digest": digest,
    }


def _replace_json(path: Path, content: Mapping[str, Any]) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(content, indent=1))
    os.replace(partial, path)
