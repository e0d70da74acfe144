import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab.adapt import lora
from adaptlab.optim import adamw, linear
from adaptlab.train import Checkpoints, Clock, Program, TrainState, Writer, fit, make_program, open_checkpoints
from tests.laws.table import MODELS, scattered
from tests.train import toy
from tests.train.toy import NOWHERE, Journal, into, run


def recorded(total_steps: int, measure_every: int, save_every: int, resume_at: int | None = None) -> list[Any]:
    """What the loop does, in its order, with fakes for all that it calls."""
    calls: list[Any] = []

    def state_at(step: int) -> TrainState:
        return TrainState(jnp.asarray(step), {}, (), jnp.asarray(-1))

    def init(*_: Any) -> TrainState:
        calls.append("init")
        return jax.device_put(TrainState(np.int32(0), {}, (), np.int32(-1)))

    def step(numbers: Any, seed: Any, state: TrainState, base: Any, batch: Any) -> Any:
        calls.append(("step", batch))
        now = int(jax.device_get(state.step))
        assert now == batch
        one = jax.device_put(np.float32(1))
        return jax.device_put(state._replace(step=np.int32(now + 1))), {"loss": one, "grad_norm": one}

    def restore(like: TrainState) -> TrainState | None:
        calls.append("restore")
        return None if resume_at is None else restored

    restored = None if resume_at is None else state_at(resume_at)
    checkpoints = Checkpoints(lambda s: calls.append(("save", int(jax.device_get(s.step)))), restore, lambda: None)

    def open_writer(start: int) -> Writer:
        calls.append(("open", start))
        return Writer(
            lambda step, metrics: calls.append(("write", step, sorted(metrics))), lambda: calls.append("flush")
        )

    def batches(step: int) -> int:
        calls.append(("batch", step))
        return step

    def probe(*_: Any) -> dict[str, float]:
        calls.append("probe")
        return {"held_out": 1.0}

    program = Program(init, step, lambda *_: None)
    schedule = {"total_steps": total_steps, "measure_every": measure_every, "save_every": save_every}
    fit(run(program=program, batches=batches, probe=probe, **schedule), checkpoints, open_writer)
    return calls


TRAIN = ["train/grad_norm", "train/loss"]


def test_the_loop_measures_saves_draws_steps_and_writes_the_step_before():
    assert recorded(total_steps=3, measure_every=2, save_every=2) == [
        *("init", "restore", ("open", 0)),
        *("probe", ("write", 0, ["held_out"]), ("batch", 0), ("step", 0)),
        *(("batch", 1), ("step", 1), ("write", 0, TRAIN)),
        *(("write", 1, TRAIN), "probe", ("write", 2, ["held_out"]), "flush", ("save", 2), ("batch", 2), ("step", 2)),
        *(("write", 2, TRAIN), "probe", ("write", 3, ["held_out"]), "flush"),
    ]


def test_a_resumed_run_measures_again_where_it_stands_and_does_not_save_that_again():
    assert recorded(total_steps=3, measure_every=2, save_every=2, resume_at=2)[:8] == [
        *("init", "restore", ("open", 2)),
        *("probe", ("write", 2, ["held_out"]), ("batch", 2), ("step", 2)),
        ("write", 2, TRAIN),
    ]


def test_the_next_update_is_dispatched_before_the_last_ones_metrics_are_read():
    calls = recorded(total_steps=6, measure_every=6, save_every=6)
    for step in range(1, 6):
        assert calls.index(("step", step)) < calls.index(("write", step - 1, TRAIN))


def test_all_that_a_checkpoint_stands_for_is_flushed_before_it_is_saved():
    calls = recorded(total_steps=7, measure_every=3, save_every=2)
    for position, call in enumerate(calls):
        if call[0] == "save":
            assert calls[position - 1] == "flush"
            written = {c[1] for c in calls[:position] if c[0] == "write" and c[2] == TRAIN}
            assert written == set(range(call[1]))


class Killed(BaseException):
    pass


def interrupted(folder: Path, journal: Journal, at: int, **changes: Any) -> None:
    """Run until batch `at` is drawn, and no further."""
    batches = changes.get("batches", toy.points)

    def until(step: int) -> Any:
        if step == at:
            raise Killed
        return batches(step)

    checkpoints = open_checkpoints(folder)
    with pytest.raises(Killed):
        fit(run(**(changes | {"batches": until})), checkpoints, into(journal))
    checkpoints.close()


def whole(folder: Path, journal: Journal, **changes: Any) -> Any:
    checkpoints = open_checkpoints(folder)
    fitted = fit(run(**changes), checkpoints, into(journal))
    checkpoints.close()
    return fitted


def test_a_run_resumed_at_any_step_has_the_curves_of_one_never_interrupted(tmp_path: Path):
    wanted: Journal = {}
    last = whole(tmp_path / "wanted", wanted)
    assert (last.resumed_at, len(wanted)) == (None, 6 * 3 + 4)
    for at in range(6):
        journal: Journal = {}
        interrupted(tmp_path / str(at), journal, at)
        resumed = whole(tmp_path / str(at), journal)
        assert resumed.resumed_at == (None if at < 2 else at // 2 * 2)
        assert journal == wanted
        np.testing.assert_array_equal(resumed.state.delta["w"], last.state.delta["w"])


def test_a_run_killed_several_times_has_the_curves_of_one_never_interrupted(tmp_path: Path):
    wanted: Journal = {}
    whole(tmp_path / "wanted", wanted)
    journal: Journal = {}
    for at in (1, 3, 3, 5):
        interrupted(tmp_path / "killed", journal, at)
    assert whole(tmp_path / "killed", journal).resumed_at == 4
    assert journal == wanted


def test_a_language_model_resumes_bitwise_too(tmp_path: Path):
    row = MODELS["llama_untied_gqa"]
    base = scattered(jax.jit(row.model.init)(jax.random.key(0)), 0)
    program = make_program(
        lambda numbers: row.loss,
        lambda numbers: lora(2, alpha=numbers["alpha"]),
        lambda numbers: adamw(numbers["lr"], total_steps=5, schedule=linear(), clip=1.0),
        accumulate=2,
    )

    def probe(numbers: Any, base: Any, delta: Any) -> dict[str, float]:
        return {"a": float(jax.device_get(jnp.sum(delta["layers"]["attention"]["key"]["kernel"]["b"])))}

    parts = {"program": program, "numbers": {"alpha": 4.0, "lr": 0.01}, "base": base, "batches": row.batch}
    parts |= {"probe": probe, "total_steps": 5}
    wanted: Journal = {}
    whole(tmp_path / "wanted", wanted, **parts)
    journal: Journal = {}
    interrupted(tmp_path / "killed", journal, 3, **parts)
    assert whole(tmp_path / "killed", journal, **parts).resumed_at == 2
    assert journal == wanted
    assert wanted[4, "a"] != wanted[0, "a"]


def test_a_paused_run_goes_on_to_the_curves_of_one_never_paused(tmp_path: Path):
    wanted: Journal = {}
    last = whole(tmp_path / "wanted", wanted, measure_every=3)
    journal: Journal = {}
    for until in (3, 3, 6):
        fitted = whole(tmp_path / "paused", journal, measure_every=3, until=until)
        assert fitted.paused_at == (3 if until == 3 else None)
    assert journal == wanted
    np.testing.assert_array_equal(fitted.state.delta["w"], last.state.delta["w"])


def poisoned(step: int) -> toy.Points:
    batch = toy.points(step)
    return batch._replace(y=jax.device_put(np.full(8, np.nan, np.float32))) if step == 3 else batch


def test_a_run_that_diverges_ends_there_and_says_where():
    journal: Journal = {}
    fitted = fit(run(batches=poisoned), NOWHERE, into(journal))
    assert fitted.diverged_at == 3
    assert int(fitted.state.diverged_at) == 3
    assert max(step for step, _ in journal) == 3
    assert np.isnan(journal[3, "train/loss"])
    assert all(np.isfinite(value) for (step, _), value in journal.items() if step < 3)


def test_a_diverged_state_is_not_saved():
    saved: list[int] = []
    checkpoints = NOWHERE._replace(save=lambda state: saved.append(int(jax.device_get(state.step))))
    fit(run(batches=poisoned), checkpoints, into({}))
    assert saved == [2]


def test_a_hidden_transfer_is_an_error():
    with pytest.raises(Exception, match=r"(?i)disallowed.*transfer"):
        fit(run(batches=lambda step: jax.device_get(toy.points(step))), NOWHERE, into({}))


def test_seeds_and_numbers_matter_only_through_their_values():
    journals: list[Journal] = [{}, {}, {}]
    shared = toy.program()
    for journal, lr in zip(journals, (0.05, 0.05, 0.1), strict=True):
        fit(run(program=shared, numbers={"lr": lr}), NOWHERE, into(journal))
    assert journals[0] == journals[1] != journals[2]
    assert shared.step._cache_size() == 1


def test_every_update_is_timed_once_and_probes_are_not():
    clock = Clock()

    def slow(*_: Any) -> dict[str, float]:
        time.sleep(0.2)
        return {"held_out/loss": 1.0}

    fit(run(probe=slow), NOWHERE, into({}), clock)
    assert len(clock.seconds) == 6
    assert max(clock.seconds[1:]) < 0.2


def test_the_state_before_the_first_update_has_a_probe_of_its_own(tmp_path: Path):
    asked: list[str] = []

    def named(name: str) -> Any:
        return lambda *_: asked.append(name) or {"held_out": 0.0}

    fit(run(probe=named("later"), beginning=named("beginning")), NOWHERE, into({}))
    assert asked == ["beginning", "later", "later", "later"]
