"""One member, from its folder to its result: resumable at any moment, finished once."""

import functools
import json
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adaptlab import adapt, report, tree
from adaptlab.measure import make_probe
from adaptlab.study.folder import write_json
from adaptlab.study.lab import Lab
from adaptlab.study.members import Member, method_program
from adaptlab.train import Compiled, Fitted, Run, Writer, compile_program, device_numbers, fit, open_checkpoints

__all__ = ["run_member", "run_members"]

log = logging.getLogger(__name__)

_RESULT = "result.json"


def run_members(
    lab: Lab, members: Iterable[Member], folder: Path, wandb: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Run the members of a study in turn and return `{name: result}`. Finished ones are not run again.

    Members that differ only in numbers share a compiled program and a probe.

    Args:
      lab: what they share.
      members: the runs, those of one program in a row.
      folder: the study's; each member has `runs/<name>` in it.
      wandb: the settings of the W&B mirror, see `Wandb`.
    """
    results, shared, skeleton = {}, None, None
    for member in members:
        home = folder / "runs" / member.name
        if (home / _RESULT).exists():
            log.info("%s has finished before", member.name)
            results[member.name] = json.loads((home / _RESULT).read_text())
            continue
        if shared is None or member.skeleton != skeleton:
            shared, skeleton = None, member.skeleton  # let go of the old program first
            shared = _share(lab, member)
        results[member.name] = run_member(
            lab, member, *shared, home, functools.partial(_mirrors, lab, member, folder, wandb)
        )
    return results


def _mirrors(lab: Lab, member: Member, folder: Path, wandb: Mapping[str, Any]) -> report.Sink:
    """What a member's curves go to besides its journal: the terminal and W&B."""
    target = next(iter(lab.held_out))
    name = f"{folder.name}/{member.name}"
    config = {"method": member.method, "lr": member.lr, "seed": member.seed, "skeleton": member.skeleton}
    return report.tee(
        report.progress(member.name, lab.total_steps, target),
        report.wandb_sink(
            wandb["project"],
            name=name,
            group=folder.name,
            config=config | {"numbers": member.numbers},
            dir=folder / "runs" / member.name,
            mode=wandb["mode"],
            tags=wandb["tags"],
        ),
    )


def _share(lab: Lab, member: Member) -> tuple[Compiled, Any]:
    program = method_program(
        member, lab.loss, lab.total_steps, accumulate=lab.training.accumulate, placement=lab.placement
    )
    numbers, seed = device_numbers(member.numbers, member.seed)
    compiled = compile_program(program, numbers, seed, lab.params, lab.batches(member.seed)(0))
    log.info("%s: compiled in %.1f s", member.method, compiled.seconds)
    probe = make_probe(lab.measurement, lab.held_out, program.bind)

    def held_out(*args: Any) -> dict[str, float]:
        return {f"held_out/{name}": value for name, value in probe(*args).items()}

    return compiled, held_out


def run_member(
    lab: Lab,
    member: Member,
    compiled: Compiled,
    probe: Callable[..., dict[str, float]],
    folder: Path,
    mirrors: Callable[[], report.Sink],
) -> dict[str, Any]:
    """Train one member, from its newest checkpoint if there is one, and return its result.

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
    write_json(folder / _RESULT, result)
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
