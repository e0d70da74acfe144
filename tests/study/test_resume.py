"""A study killed at any moment goes on, with the same command, to the same curves, bit by bit."""

import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from adaptlab.report import load_curves
from tests.study.conftest import finish, results, start


def study_folder(cwd: Path) -> Path:
    (folder,) = (cwd / "runs" / "forgetting").iterdir()
    return folder


@pytest.fixture(scope="module")
def whole(overrides: list[str], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    cwd = tmp_path_factory.mktemp("whole")
    finish(overrides, cwd, environment)
    return study_folder(cwd)


def kill_when(condition: Callable[[], bool], overrides: list[str], cwd: Path, env: dict[str, str]) -> bool:
    """Start the study and kill it as soon as the condition holds; False if it ended before that."""
    process = start(overrides, cwd, env)
    while process.poll() is None:
        if condition():
            process.send_signal(signal.SIGKILL)
            process.communicate()
            return True
        time.sleep(0.001)
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return False


def saved_steps(cwd: Path) -> list[Path]:
    """The checkpoints of the first method, whole and half-written."""
    return list(cwd.glob("runs/forgetting/*/runs/full/*/*/checkpoints/steps/*"))


def assert_same_curves(resumed: Path, whole: Path) -> None:
    assert load_curves(resumed / "curves.parquet").equals(load_curves(whole / "curves.parquet"))
    digests = {name: result["delta_digest"] for name, result in results(whole).items()}
    assert {name: result["delta_digest"] for name, result in results(resumed).items()} == digests


def test_a_study_killed_at_random_moments_ends_in_the_same_bits(
    whole: Path, overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    moments, kills = random.Random(7), 0

    def journals() -> int:
        return sum(p.stat().st_size for p in tmp_path.glob("runs/forgetting/*/runs/*/*/*/journal.jsonl"))

    for _ in range(4):
        # Past the start-up, which differs between machines: some lines of a curve further than last time.
        further = journals() + moments.randrange(1, 1500)
        kills += kill_when(lambda: journals() >= further, overrides, tmp_path, environment)  # noqa: B023
    assert kills >= 2
    output = finish(overrides, tmp_path, environment)
    assert_same_curves(study_folder(tmp_path), whole)
    assert "finished before" in output or any(r["resumed_at"] for r in results(study_folder(tmp_path)).values())


def test_a_study_killed_while_it_saves_ends_in_the_same_bits(
    whole: Path, overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    def torn() -> list[Path]:
        return [p for p in saved_steps(tmp_path) if not p.name.isdigit()]

    assert kill_when(lambda: bool(torn()), overrides, tmp_path, environment)
    assert torn()
    finish(overrides, tmp_path, environment)
    assert_same_curves(study_folder(tmp_path), whole)


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(
    whole: Path, overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    def whole_steps() -> list[Path]:
        return sorted((p for p in saved_steps(tmp_path) if p.name.isdigit()), key=lambda p: int(p.name))

    assert kill_when(lambda: len(whole_steps()) >= 2, overrides, tmp_path, environment)
    saved = whole_steps()
    largest = max((p for p in saved[-1].rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    damaged = bytearray(largest.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    largest.write_bytes(damaged)
    output = finish(overrides, tmp_path, environment)
    assert "Damaged checkpoint" in output
    assert f"step {saved[-1].name}" in output
    result = next(r for name, r in results(study_folder(tmp_path)).items() if name.startswith("full"))
    assert result["resumed_at"] is not None
    assert result["resumed_at"] < int(saved[-1].name)
    assert_same_curves(study_folder(tmp_path), whole)


def test_a_finished_study_is_not_resumed_but_started_anew(
    whole: Path, overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    shutil.copytree(whole, tmp_path / "runs" / "forgetting" / "2000-01-01_00-00-00")
    finish([*overrides, "training.duration.steps=12"], tmp_path, environment)
    assert len(list((tmp_path / "runs" / "forgetting").iterdir())) == 2


def test_another_config_is_refused_in_the_same_folder(
    whole: Path, overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    folder = tmp_path / "study"
    shutil.copytree(whole, folder)
    process = start([*overrides, f"hydra.run.dir={folder}", "seeds=[1]"], tmp_path, environment)
    output, _ = process.communicate()
    assert process.returncode != 0
    assert "seeds: [0] -> [1]" in output
