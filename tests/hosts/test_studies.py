"""Whole studies of real processes: killed, preempted and resumed, on as many processes as before and on others.

The curves are bit by bit those of a study that nothing happened to, if mesh and processes are the same; on others they
differ by what another order of summation gives, 1e-5 of a value at most.
"""

import functools
import json
import re
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from adaptlab import report
from adaptlab.preempt import EXIT_CODE
from tests.hosts.processes import ended, said, start
from tests.study.conftest import overrides  # noqa: F401 (a fixture)

pytestmark = pytest.mark.slow

Curves = dict[tuple[str, int, str], float]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def command(overrides: list[str]) -> list[str]:  # noqa: F811
    return ["experiments.forgetting", *overrides, "training.duration.steps=80", "mesh=auto"]


@pytest.fixture(scope="module")
def whole_of(command: list[str], cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Curves]:
    """The curves of so many processes that nothing happens to."""

    @functools.cache
    def curves_of(processes: int) -> Curves:
        cwd = tmp_path_factory.mktemp(f"whole{processes}")
        assert ended(start(command, processes, cwd, cache)) == [0] * processes, said(cwd)
        return curves(cwd)

    return curves_of


@pytest.fixture
def whole(whole_of: Callable[[int], Curves]) -> Curves:
    return whole_of(2)


def curves(cwd: Path) -> Curves:
    found: Curves = {}
    for path in cwd.glob("runs/forgetting/*/runs/*/*/*/journal.jsonl"):
        for row in report.read_journal(path):
            for metric, value in row.metrics.items():
                key = path.parents[2].name, row.step, metric
                assert key not in found
                found[key] = value
    return found


def rows(cwd: Path) -> int:
    """How far a study has come."""
    return sum(len(path.read_bytes().splitlines()) for path in cwd.glob("runs/forgetting/*/runs/*/*/*/journal.jsonl"))


def once(far: Callable[[], bool], started: Sequence[subprocess.Popen[str]]) -> None:
    """Wait until the study has come so far."""
    until = time.monotonic() + 300
    while not far():
        assert time.monotonic() < until
        assert all(one.poll() is None for one in started)
        time.sleep(0.005)


def assert_equal(found: Curves, wanted: Curves) -> None:
    assert found == wanted


def assert_close(found: Curves, wanted: Curves) -> None:
    """All curves agree, but for LoRA's gradient norm: Adam magnifies rounding where a gradient is nearly zero."""
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        if key[::2] != ("lora", "train/grad_norm"):
            np.testing.assert_allclose(found[key], value, rtol=1e-5, atol=1e-7, err_msg=str(key))


def of(method: str, found: Curves) -> Curves:
    """The curves of one method."""
    return {key: value for key, value in found.items() if key[0] == method}


def results(cwd: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted(cwd.glob("runs/forgetting/*/runs/*/*/*/result.json"))]


@pytest.mark.parametrize("processes", [2, 4])
def test_the_death_of_one_process_ends_the_others_in_time_and_the_study_resumes_to_the_same_bits(
    processes: int, whole_of: Callable[[int], Curves], command: list[str], cache: Path, tmp_path: Path
):
    for victim in (processes - 1, 0):
        further = rows(tmp_path) + 10
        started = start(command, processes, tmp_path, cache)
        once(lambda: rows(tmp_path) >= further, started)  # noqa: B023
        started[victim].kill()
        codes = ended(started, 90)
        assert codes[victim] == -signal.SIGKILL
        for other in set(range(processes)) - {victim}:
            assert codes[other] != 0
            assert re.search("detected fatal errors|gloo::", (tmp_path / f"{other}.txt").read_text())
    assert ended(start(command, processes, tmp_path, cache)) == [0] * processes, said(tmp_path)
    assert any(result["resumed_at"] for result in results(tmp_path))
    assert_equal(curves(tmp_path), whole_of(processes))


@pytest.mark.parametrize(
    ("first", "processes", "mesh"),
    [(2, 4, ["mesh.fsdp=4"]), (2, 1, []), (2, 2, ["mesh.tensor=2"]), (4, 2, []), (4, 1, ["mesh.fsdp=2"])],
)
def test_all_are_killed_and_others_go_on_on_another_mesh(
    first: int, processes: int, mesh: list[str], whole: Curves, command: list[str], cache: Path, tmp_path: Path
):
    started = start(command, first, tmp_path, cache)
    once(lambda: rows(tmp_path) >= 12, started)
    for one in started:
        one.kill()
    ended(started)
    resumed = start([*command, *mesh], processes, tmp_path, cache)
    assert ended(resumed) == [0] * processes, said(tmp_path)
    assert any(result["resumed_at"] for result in results(tmp_path))
    assert_close(curves(tmp_path), whole)


@pytest.mark.parametrize("processes", [1, 2])
def test_a_notice_to_one_process_saves_all_and_the_same_command_goes_on_to_the_same_bits(
    processes: int, whole: Curves, command: list[str], cache: Path, tmp_path: Path
):
    once_only = [*command, "~methods.full", "training.save_every=1000"]
    for notice in (signal.SIGTERM, signal.SIGUSR1):
        further = rows(tmp_path) + 6
        started = start(once_only, processes, tmp_path, cache)
        once(lambda: rows(tmp_path) >= further, started)  # noqa: B023
        started[-1].send_signal(notice)
        assert ended(started, 120) == [EXIT_CODE] * processes, said(tmp_path)
    assert ended(start(once_only, processes, tmp_path, cache)) == [0] * processes, said(tmp_path)
    assert all(result["resumed_at"] for result in results(tmp_path))
    if processes == 2:
        wanted = of("lora", whole)
    else:
        assert ended(start(once_only, 1, tmp_path / "alone", cache)) == [0], said(tmp_path / "alone")
        wanted = curves(tmp_path / "alone")
    assert_equal(curves(tmp_path), wanted)


def test_a_sweep_of_two_processes_is_preempted_and_goes_on(command: list[str], cache: Path, tmp_path: Path):
    study, *given = command
    sweep = [study, "--multirun", *given, "hydra/launcher=vmap", "methods.lora.optim.lr=1e-3,2e-3,3e-3,4e-3"]
    sweep += ["~methods.full", "training.save_every=1000", "mesh=single", "hydra.launcher.how=map"]
    wanted = tmp_path / "wanted"
    assert ended(start(sweep, 2, wanted, cache)) == [0, 0], said(wanted)
    told = tmp_path / "told"
    started = start(sweep, 2, told, cache)
    once(lambda: sum(p.stat().st_size for p in told.glob("runs/**/journal.jsonl")) > 4000, started)
    started[1].send_signal(signal.SIGTERM)
    assert ended(started, 180) == [EXIT_CODE] * 2, said(told)
    assert ended(start(sweep, 2, told, cache)) == [0, 0], said(told)

    def journals(cwd: Path) -> dict[str, bytes]:
        return {str(p.relative_to(p.parents[5])): p.read_bytes() for p in cwd.glob("runs/**/journal.jsonl")}

    assert len(journals(told)) == 4
    assert sorted(journals(told).values()) == sorted(journals(wanted).values())
