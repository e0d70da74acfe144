"""Told to leave, a run saves at the next update; started again, its curves are those of one that was left alone."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adaptlab import preempt, tree
from adaptlab.train import Run, fit, open_checkpoints
from tests.train import toy
from tests.train.toy import Journal, into, run


@pytest.fixture(scope="module")
def program() -> Any:
    return toy.program()


def told_at(step: int, number: int) -> Any:
    """Batches that bring a signal along."""

    def batches(now: int) -> Any:
        if now == step:
            os.kill(os.getpid(), number)
        return toy.points(now)

    return batches


def trained(folder: Path, journal: Journal, what: Run) -> Any:
    checkpoints = open_checkpoints(folder)
    try:
        return fit(what, checkpoints, into(journal))
    finally:
        checkpoints.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_saves_the_next_state_and_the_run_goes_on_as_if_nothing_had_happened(
    number: int, tmp_path: Path, program: Any
):
    wanted: Journal = {}
    last = trained(tmp_path / "whole", wanted, run(program=program))
    journal: Journal = {}
    with preempt.noticing(), pytest.raises(preempt.Preempted, match="at step 4"):
        trained(tmp_path / "told", journal, run(program=program, batches=told_at(3, number), save_every=100))
    assert max(step for step, _ in journal) == 3  # not measured: a resumed run does that
    resumed = trained(tmp_path / "told", journal, run(program=program, save_every=100))
    assert resumed.resumed_at == 4
    assert journal == wanted
    assert tree.digest(resumed.state) == tree.digest(last.state)


def test_a_run_that_had_no_update_yet_leaves_without_a_checkpoint(tmp_path: Path, program: Any):
    with preempt.noticing():
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(preempt.Preempted, match="at step 0"):
            trained(tmp_path, {}, run(program=program))
    assert not list((tmp_path / "steps").iterdir())


@pytest.fixture
def _handler() -> Iterator[list[int]]:
    called: list[int] = []
    before = signal.signal(signal.SIGUSR2, lambda number, _: called.append(number))
    yield called
    signal.signal(signal.SIGUSR2, before)


def test_a_handler_that_was_there_is_called_once_all_is_saved(_handler: list[int]):  # noqa: PT019
    with preempt.noticing():
        os.kill(os.getpid(), signal.SIGUSR2)
        assert preempt.noticed()
        assert not _handler
        with pytest.raises(SystemExit) as left:
            preempt.leave()
    assert left.value.code == preempt.EXIT_CODE == 75
    assert _handler == [signal.SIGUSR2]
    os.kill(os.getpid(), signal.SIGUSR2)  # and is there again
    assert len(_handler) == 2
    assert not preempt.noticed()


def test_metrics_before_the_notice_are_written(tmp_path: Path, program: Any):
    journal: Journal = {}
    with preempt.noticing(), pytest.raises(preempt.Preempted):
        trained(tmp_path, journal, run(program=program, batches=told_at(3, signal.SIGTERM)))
    losses = [value for (step, name), value in sorted(journal.items()) if name == "train/loss"]
    assert len(losses) == 4
    assert np.isfinite(losses).all()
