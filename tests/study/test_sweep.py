"""A sweep as one program, from the shell: the curves a run has alone, resumed in the same bits, nothing run twice."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from adaptlab.config import ConfigError
from adaptlab.preempt import EXIT_CODE
from adaptlab.report import read_journal
from adaptlab.study.devices import cores
from adaptlab.study.sweep import Job, together
from tests.study.conftest import finish, start

JOBS = ["-m", "optim.lr=1e-3,3e-3", "seed=0,1", "optim.weight_decay=0.0,0.1", "hydra/launcher=vmap"]
ALONE = "optim.lr=3e-3 seed=1 optim.weight_decay=0.1"


def sweep_folder(cwd: Path) -> Path:
    (folder,) = (cwd / "runs" / "lr_schedule").glob("sweep_*")
    return folder


def journals(folder: Path) -> dict[str, Any]:
    return {str(p.relative_to(folder)): read_journal(p) for p in sorted(folder.glob("*/runs/**/journal.jsonl"))}


def digests(folder: Path) -> dict[str, str]:
    paths = sorted(folder.glob("*/runs/**/result.json"))
    return {str(p.relative_to(folder)): json.loads(p.read_text())["delta_digest"] for p in paths}


@pytest.fixture(scope="module")
def whole(
    overrides: list[str], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    cwd = tmp_path_factory.mktemp("sweep")
    return cwd, finish([*JOBS, *overrides], cwd, environment, "lr_schedule")


def test_a_sweep_says_how_many_jobs_are_how_many_programs_and_why(whole: tuple[Path, str]):
    _, output = whole
    assert "8 jobs have 8 runs on 1 base" in output
    assert "8 runs are 1 program" in output
    assert "8 runs that differ in optim.lr, optim.weight_decay, seed" in output
    assert "by vmap" in output
    parts = min(len(cores()), 8)
    if parts > 1:
        assert re.search(r"an update takes [\d.]+ s alone, [\d.]+ s among 4 by vmap", output)
        shares = ", ".join(str(len(range(i, 8, parts))) for i in range(parts))
        assert f"{parts} processes on cores of their own take {shares} runs" in output
    assert "WARNING" not in output  # its jobs do not choose devices again


def test_every_member_is_a_run_of_its_own_and_the_sweep_has_one_report(whole: tuple[Path, str]):
    folder = sweep_folder(whole[0])
    for job in range(8):
        for name in ("config.yaml", "summary.json", "curves.parquet", "passport.json"):
            assert (folder / str(job) / name).exists()
        assert not (folder / str(job) / "report.html").exists()
    assert len(journals(folder)) == len(set(digests(folder).values())) == 8
    assert (folder / "report.html").exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert sorted(row["seeds"] for row in summary["groups"]) == [[0, 1]] * 4
    assert {row["method"] for row in summary["groups"]} == {
        "run optim.weight_decay=0.0",
        "run optim.weight_decay=0.1",
    }


def test_a_member_has_the_curve_it_has_alone(
    whole: tuple[Path, str], overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    finish([*ALONE.split(), *overrides], tmp_path, environment, "lr_schedule")
    (path,) = tmp_path.glob("runs/lr_schedule/*/runs/**/journal.jsonl")
    wanted = read_journal(path)
    finish([*JOBS, "hydra.launcher.how=vmap", *overrides], tmp_path, environment, "lr_schedule")
    for folder in (sweep_folder(whole[0]), sweep_folder(tmp_path)):  # by processes, and in slots of one program
        (same,) = (rows for name, rows in journals(folder).items() if name.startswith("7/"))
        assert [row.step for row in same] == [row.step for row in wanted]
        for got, row in zip(same, wanted, strict=True):
            assert got.metrics == pytest.approx(row.metrics, rel=1e-4)


def started(cwd: Path, overrides: list[str], environment: dict[str, str], least: int) -> subprocess.Popen[str]:
    """Start the sweep and let it write so many lines of its about 160 of curves."""

    def lines() -> int:
        # Not "**": folders of checkpoints come and go meanwhile.
        found = cwd.glob("runs/lr_schedule/*/*/runs/*/*/*/journal.jsonl")
        return sum(len(p.read_bytes().splitlines()) for p in found)

    process = start([*JOBS, *overrides], cwd, environment, "lr_schedule")
    while lines() < least and process.poll() is None:
        time.sleep(0.002)
    assert process.poll() is None
    return process


def ended_as(whole: tuple[Path, str], cwd: Path, overrides: list[str], environment: dict[str, str]) -> None:
    """Give the command again: it ends in the bits of an uninterrupted sweep, and runs nothing twice."""
    done = {p: p.stat().st_mtime_ns for p in cwd.glob("runs/**/result.json")}
    output = finish([*JOBS, *overrides], cwd, environment, "lr_schedule")
    assert "Resuming the sweep" in output
    assert all(p.stat().st_mtime_ns == then for p, then in done.items())
    folder, wanted = sweep_folder(cwd), sweep_folder(whole[0])
    assert journals(folder) == journals(wanted)
    assert digests(folder) == digests(wanted)


def members_of_the_crew(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The processes that the sweep's own has, without those that do not run anything of it."""
    return [p for p in psutil.Process(process.pid).children(recursive=True) if len(p.cpu_affinity()) < len(cores())]


def test_a_sweep_killed_at_any_moment_ends_in_the_same_bits_and_runs_nothing_twice(
    whole: tuple[Path, str], overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    for least in (20, 70):
        process = started(tmp_path, overrides, environment, least)
        crew = members_of_the_crew(process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert psutil.wait_procs(crew, timeout=10)[1] == []  # nobody goes on without it
    ended_as(whole, tmp_path, overrides, environment)


@pytest.mark.skipif(len(cores()) == 1, reason="one core: a sweep is one process")
def test_a_job_whose_runs_have_ended_is_finished_while_others_train(
    overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    jobs = ["-m", "adapt=full,lora", "seed=0,1,2,3", "hydra/launcher=vmap", *overrides]
    process, early = start(jobs, tmp_path, environment, "lr_schedule"), []
    while not early and process.poll() is None:
        early = [*tmp_path.glob("runs/lr_schedule/*/*/summary.json")]
        time.sleep(0.01)
    process.kill()
    output, _ = process.communicate()
    assert early, output
    folder = sweep_folder(tmp_path)
    assert len(digests(folder)) < 8
    output = finish(jobs, tmp_path, environment, "lr_schedule")
    assert "has finished before" in output
    assert len(digests(folder)) == len([*folder.glob("*/summary.json")]) == 8


def test_slots_of_one_program_killed_end_in_the_same_bits_too(
    overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    slots, (once, killed) = ["hydra.launcher.how=map", *overrides], (tmp_path / "once", tmp_path / "killed")
    once.mkdir()
    killed.mkdir()
    whole = once, finish([*JOBS, *slots], once, environment, "lr_schedule")
    assert "by map" in whole[1]
    process = started(killed, slots, environment, 40)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    ended_as(whole, killed, slots, environment)


@pytest.mark.skipif(len(cores()) == 1, reason="one core: a sweep is one process")
def test_a_sweep_told_to_leave_is_saved_by_all_its_processes(
    whole: tuple[Path, str], overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    process = started(tmp_path, overrides, environment, 20)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == EXIT_CODE, output
    ended_as(whole, tmp_path, overrides, environment)


@pytest.mark.skipif(len(cores()) == 1, reason="one core: a sweep is one process")
def test_a_process_of_a_sweep_that_dies_is_an_error_and_the_others_finish_theirs(
    whole: tuple[Path, str], overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    process = started(tmp_path, overrides, environment, 20)
    crew = members_of_the_crew(process)
    assert len(crew) == min(len(cores()), 8)
    crew[0].kill()
    output, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "A process died (out of memory?); the same command goes on from there" in output
    assert 4 <= len(digests(sweep_folder(tmp_path))) < 8
    ended_as(whole, tmp_path, overrides, environment)


@pytest.mark.slow
@pytest.mark.parametrize("slots", [None, 2], ids=["processes", "slots"])
def test_halving_ends_the_worse_runs_early_and_a_free_slot_is_taken(
    slots: int | None, overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    halving = "hydra.launcher.halving={_target_: adaptlab.study.successive_halving, eta: 2, first: 0.25, reward: gain}"
    jobs = ["-m", "optim.lr=1e-5,1e-3,1e-2,1e-4", "seed=0", "hydra/launcher=vmap", "hydra.launcher.cpu_devices=2"]
    jobs += [f"hydra.launcher.slots={slots}"] if slots else []
    output = finish([*jobs, halving, *overrides], tmp_path, environment, "lr_schedule")
    results = [json.loads(p.read_text()) for p in sorted(tmp_path.glob("runs/**/result.json"))]
    pruned = {r["lr"]: r["pruned_at"] for r in results}
    assert sorted(str(at) for at in pruned.values()) == ["3", "3", "6", "None"]
    assert "step 3: 2 of 4 runs go on" in output
    assert ("2 processes on cores of their own take 2, 2 runs" in output) == (slots is None)
    assert slots is None or {r["slots"] for r in results} == {slots}
    losses = {r["lr"]: r["target_loss"] for r in results}
    assert min(losses, key=losses.__getitem__) == next(lr for lr, at in pruned.items() if at is None)


def test_carrying_over_a_state_that_is_not_known_is_refused_before_anything_runs(
    overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    process = start(["seeds=[0]", "multiples=[1]", *overrides], tmp_path, environment, "lr_schedule")
    output, _ = process.communicate(timeout=600)
    assert process.returncode != 0
    assert "python -m experiments.pretrain" in output
    assert not list(tmp_path.glob("runs/**/journal.jsonl"))


def test_a_key_that_the_launcher_decides_is_refused_in_a_job(tmp_path: Path):
    job = Job({}, tmp_path / "0", "optim.lr=1e-3 replication.how=map")
    with pytest.raises(ConfigError, match=r"no effect.*hydra\.launcher\.how=map"), together(dict, [job], tmp_path, {}):
        pass


RULE = "adaptlab.study.successive_halving"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cpu_devices": 0}, r"cpu_devices=0 must be at least 1"),
        ({"halving": 3}, r"halving=3 is no rule; give one, such as"),
        ({"halving": {"eta": 3}}, r"halving=\{'eta': 3\} is no rule"),
        ({"halving": {"_target_": RULE, "etaa": 3}}, r"halving\.etaa=3: .*Did you mean 'eta'"),
        ({"slots": 0}, r"slots=0: "),
        ({"slotz": 2}, r"slotz=2: .*Did you mean 'slots'"),
    ],
)
def test_what_the_launcher_is_told_is_checked_like_everything_else(
    options: dict[str, Any], message: str, tmp_path: Path
):
    with pytest.raises(ConfigError, match=r"^hydra\.launcher\." + message), together(dict, [], tmp_path, options):
        pass
