"""The runs of a study over processes with cores of their own, from the shell."""

import signal
import time
from pathlib import Path
from typing import Any

import pytest

from adaptlab.report import read_journal
from adaptlab.study.devices import cores
from tests.study.conftest import finish, results, start

pytestmark = pytest.mark.skipif(len(cores()) == 1, reason="one core: a study is one process")

OTHER_ARMS = ("full_constant", "full_cosine", "no_warmup", "discriminative", "unfreezing", "carried_state")
STUDY = [
    *(f"~arms.{name}" for name in (*OTHER_ARMS, "decayed_state", "from_scratch")),
    *("~claims", "multiples=[1,3]", "seeds=[0,1]"),
]


def finished(folder: Path) -> dict[Path, int]:
    """When each run wrote its result. (Not "**": folders of checkpoints come and go.)"""
    return {path: path.stat().st_mtime_ns for path in folder.glob("runs/*/*/*/result.json")}


def curves(folder: Path) -> dict[str, Any]:
    return {name: read_journal(folder / "runs" / name / "journal.jsonl") for name in results(folder)}


def test_a_study_is_spread_over_processes_and_ends_in_the_same_bits_if_it_is_killed(
    overrides: list[str], quick: dict[str, str], tmp_path: Path
):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [*STUDY, *overrides]
    output = finish([*command, f"hydra.run.dir={whole}"], tmp_path, quick, "lr_schedule")
    parts = min(len(cores()), 4)  # runs of each program
    shares = ", ".join(str(len(range(i, 8, parts))) for i in range(parts))
    assert f"{parts} processes on cores of their own take {shares} runs" in output

    process = start([*command, f"hydra.run.dir={killed}"], tmp_path, quick, "lr_schedule")
    while not finished(killed) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    done = finished(killed)
    assert 0 < len(done) < 8
    output = finish([*command, f"hydra.run.dir={killed}"], tmp_path, quick, "lr_schedule")
    assert "has finished before" in output
    assert done.items() <= finished(killed).items()
    assert curves(killed) == curves(whole)
    assert len(results(whole)) == 8
    digests = [{name: run["delta_digest"] for name, run in results(folder).items()} for folder in (killed, whole)]
    assert digests[0] == digests[1]


def test_runs_that_are_told_how_to_run_stay_in_one_process(overrides: list[str], quick: dict[str, str], tmp_path: Path):
    output = finish([*STUDY, *overrides, "~arms.lora", "replication.how=map"], tmp_path, quick, "lr_schedule")
    assert "processes on cores" not in output
    assert "by map" in output
