from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab.train import Program, early_stopping, fit
from tests.train import toy
from tests.train.test_loop import interrupted, whole
from tests.train.toy import NOWHERE, Journal, into, run

VALUES = [5.0, 4.0, 4.5, 3.9, 4.2, 4.1, 1.0, 1.0, 1.0, 1.0]


def watching() -> Program:
    return toy.program(
        stopping=(
            "held_out/loss",
            lambda n: early_stopping(patience=n["patience"], min_delta=n["min_delta"]),
        )
    )


def scripted(patience: float, min_delta: float = 0.0, **changes: object) -> dict:
    """A run of nine updates, measured at each, whose held-out loss follows a script."""
    numbers = {"lr": 0.05, "patience": patience, "min_delta": min_delta}
    places = iter(VALUES)
    parts = {"program": watching(), "numbers": numbers, "total_steps": 9, "measure_every": 1, "save_every": 2}
    return parts | {"probe": lambda *_: {"held_out/loss": next(places)}} | changes


def test_patience_counts_measurements_without_improvement_and_the_best_delta_is_kept():
    deltas: list[np.ndarray] = []

    def probe(numbers: object, base: object, delta: dict) -> dict[str, float]:
        deltas.append(np.asarray(jax.device_get(delta["w"])))
        return {"held_out/loss": VALUES[len(deltas) - 1]}

    fitted = fit(run(**scripted(2, probe=probe)), NOWHERE, into({}))
    assert fitted.stopped_at == 5
    assert int(fitted.state.watch.best_step) == 3
    np.testing.assert_array_equal(fitted.delta["w"], deltas[3])
    assert not np.array_equal(fitted.delta["w"], fitted.state.delta["w"])


@pytest.mark.parametrize(("patience", "min_delta", "stopped_at"), [(1, 0.0, 2), (3, 0.0, 9), (2, 0.2, 3), (5, 9.0, 5)])
def test_where_a_run_stops_follows_from_its_numbers(patience: int, min_delta: float, stopped_at: int):
    fitted = fit(run(**scripted(patience, min_delta)), NOWHERE, into({}))
    assert (fitted.stopped_at or 9) == stopped_at


def test_another_patience_does_not_compile_again():
    program = watching()
    fit(run(**scripted(2, program=program)), NOWHERE, into({}))
    compiled = program.observe._cache_size()
    fit(run(**scripted(1, 0.1, program=program)), NOWHERE, into({}))
    assert program.observe._cache_size() == compiled


def test_a_stopped_state_does_not_move_any_more():
    parts = scripted(1)
    fitted = fit(run(**parts), NOWHERE, into({}))
    before = np.asarray(fitted.state.delta["w"])
    numbers = {k: jnp.float32(v) for k, v in parts["numbers"].items()}
    after, _ = parts["program"].step(numbers, jnp.uint32(0), fitted.state, toy.BASE, toy.points(0))
    np.testing.assert_array_equal(after.delta["w"], before)


def test_a_resumed_run_stops_where_one_never_interrupted_does(tmp_path: Path):
    def falling(numbers: object, base: object, delta: dict) -> dict[str, float]:
        return {"held_out/loss": abs(float(np.linalg.norm(jax.device_get(delta["w"]))) - 2.2)}

    for at in range(1, 4):
        wanted: Journal = {}
        last = whole(tmp_path / f"wanted{at}", wanted, **scripted(2, probe=falling))
        journal: Journal = {}
        interrupted(tmp_path / f"killed{at}", journal, at, **scripted(2, probe=falling))
        resumed = whole(tmp_path / f"killed{at}", journal, **scripted(2, probe=falling))
        assert last.stopped_at is not None
        assert last.stopped_at > 3
        assert resumed.stopped_at == last.stopped_at
        assert journal == wanted
        np.testing.assert_array_equal(resumed.delta["w"], last.delta["w"])


def test_watching_what_is_not_measured_is_an_error():
    with pytest.raises(KeyError, match="watches 'held_out/loss'; measured are"):
        fit(run(**scripted(2, probe=toy.probe)), NOWHERE, into({}))
