"""A run inside a sweep gives the curve it gives alone."""

import functools
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab.measure import Measurement, make_probe, make_slot_probe
from adaptlab.rng import generator_for
from adaptlab.shard import Placement, make_mesh, place
from adaptlab.train import (
    Checkpoints,
    Clock,
    How,
    Program,
    Replicas,
    Run,
    Seat,
    Work,
    compile_replicas,
    course,
    fit,
    fit_replicas,
    open_checkpoints,
    over_slots,
)
from tests.train import toy
from tests.train.toy import NOWHERE, Journal, into


def host_points(seed: int) -> Callable[[int], toy.Points]:
    def batch(step: int) -> toy.Points:
        rng = generator_for(seed, "points", step)
        x = rng.normal(size=(8, 3)).astype(np.float32)
        return toy.Points(x, x.sum(1), np.ones(8, np.float32))

    return batch


def toy_run(numbers: dict[str, float], seed: int, program: Program, **changes: Any) -> Run:
    return toy.run(program=program, numbers=numbers, seed=seed, batches=host_points(seed), **changes)


def work(run: Run, journal: Journal, checkpoints: Checkpoints = NOWHERE) -> Work:
    def begin(seat: Seat, clock: Clock) -> Generator[Any, Any, Any]:
        return course(run, seat, checkpoints, into(journal), clock)

    return Work(run.numbers, run.seed, begin)


def alone(run: Run) -> Journal:
    journal: Journal = {}
    fit(run._replace(batches=lambda step: jax.device_put(run.batches(step))), NOWHERE, into(journal))
    return journal


@functools.cache
def placement(replica: int) -> Placement:
    return Placement(make_mesh(data=8 // replica, replica=replica), {"w": ("embed",)})


def slots(program: Program, count: int, how: How, replica: int = 1) -> tuple[Replicas, Any, Program]:
    where = placement(replica)
    base = place(toy.BASE, where.shardings(where.axes, toy.BASE))
    return compile_replicas(program, {"lr": 0.0}, base, host_points(0)(0), count, how, placement=where), base, program


MEMBERS = [({"lr": lr}, seed) for lr in (0.01, 0.05, 0.2) for seed in (0, 1)]


@pytest.mark.parametrize("how", ["vmap", "map"])
@pytest.mark.parametrize("replica", [1, 2])
def test_a_member_has_the_curve_it_has_alone(how: How, replica: int):
    program = toy.program(placement=placement(replica))
    replicas, base, _ = slots(program, 4, how, replica)
    runs = [toy_run(*member, program, base=base) for member in MEMBERS]
    journals: list[Journal] = [{} for _ in runs]
    fitted = fit_replicas(replicas, base, [work(r, j) for r, j in zip(runs, journals, strict=True)])
    assert sorted(fitted) == list(range(6))
    for member, journal in zip(MEMBERS, journals, strict=True):
        wanted = alone(toy_run(*member, toy.program()))
        assert journal.keys() == wanted.keys()
        np.testing.assert_allclose(list(journal.values()), list(wanted.values()), rtol=1e-5)


@pytest.mark.parametrize("how", ["vmap", "map"])
@pytest.mark.parametrize("replica", [1, 2])
def test_members_that_are_measured_together_get_what_each_measures_alone(how: How, replica: int):
    where = placement(replica)
    squared = Measurement(
        lambda: jnp.zeros(2),
        lambda state, params, batch: state + jnp.stack([jnp.sum((batch.x @ params["w"] - batch.y) ** 2), 8.0]),
        lambda state: {"error": float(state[0] / state[1])},
    )
    domains = {
        name: [jax.device_put(host_points(9)(i + at), where.replicated) for i in range(2)]
        for name, at in (("a", 0), ("b", 2))
    }
    program = toy.program(placement=where)
    replicas, base, _ = slots(program, 4, how, replica)
    one = make_probe(squared, domains, program.bind)
    together = make_slot_probe(
        squared,
        domains,
        lambda numbers, base, state: program.bind(numbers, base, state.delta),
        lambda f: over_slots(f, how, where),
    )
    # Six runs in four slots: the last two are out of step with nobody, then alone in half of the slots.
    runs = [toy_run(*member, program, base=base, probe=one) for member in MEMBERS]
    journals: dict[bool, list[Journal]] = {}
    for batched in (False, True):
        journals[batched] = [{} for _ in runs]
        works = [work(r, j) for r, j in zip(runs, journals[batched], strict=True)]
        fit_replicas(replicas, base, works, probe=together if batched else None)
    for got, wanted in zip(journals[True], journals[False], strict=True):
        assert got.keys() == wanted.keys()
        assert {(0, "a/error"), (6, "b/error")} <= got.keys()
        np.testing.assert_allclose(list(got.values()), list(wanted.values()), rtol=1e-6)


@pytest.mark.parametrize("how", ["vmap", "map"])
def test_a_diverging_member_is_marked_and_changes_no_other_members_bits(how: How):
    def curves(poisoned: bool) -> tuple[list[Journal], Any]:
        program = toy.program(placement=placement(1))
        replicas, base, _ = slots(program, 3, how)
        runs = [toy_run({"lr": 0.05}, seed, program, base=base) for seed in range(3)]
        if poisoned:
            clean = runs[1].batches

            def batches(step: int) -> toy.Points:
                batch = clean(step)
                return batch._replace(y=batch.y * np.float32(np.nan)) if step == 3 else batch

            runs[1] = runs[1]._replace(batches=batches)
        journals: list[Journal] = [{} for _ in runs]
        return journals, fit_replicas(replicas, base, [work(r, j) for r, j in zip(runs, journals, strict=True)])

    (clean, _), (others, fitted) = curves(False), curves(True)
    assert [fitted[i].diverged_at for i in range(3)] == [None, 3, None]
    assert (others[0], others[2]) == (clean[0], clean[2])
    assert max(step for step, _ in others[1]) == 3


def test_more_members_than_slots_take_the_slots_that_fall_free_with_the_same_bits():
    program = toy.program(placement=placement(1))
    journals: dict[int, list[Journal]] = {}
    for count in (2, 6):
        replicas, base, _ = slots(program, count, "map")
        runs = [toy_run(*member, program, base=base) for member in MEMBERS]
        journals[count] = [{} for _ in runs]
        fit_replicas(replicas, base, [work(r, j) for r, j in zip(runs, journals[count], strict=True)])
    assert journals[2] == journals[6]


@pytest.mark.parametrize("how", ["vmap", "map"])
def test_members_that_resume_at_different_steps_share_a_program_and_keep_their_bits(how: How, tmp_path: Path):
    class Killed(BaseException):
        pass

    program = toy.program(placement=placement(1))
    replicas, base, _ = slots(program, 3, how)
    runs = [toy_run({"lr": 0.05}, seed, program, base=base) for seed in range(3)]
    wanted: list[Journal] = [{} for _ in runs]
    fit_replicas(replicas, base, [work(r, j) for r, j in zip(runs, wanted, strict=True)])

    def killed_at(run: Run, last: int) -> Run:
        def batches(step: int) -> toy.Points:
            if step == last:
                raise Killed
            return run.batches(step)

        return run._replace(batches=batches)

    journals: list[Journal] = [{} for _ in runs]
    for i, last in enumerate((1, 3, 5)):  # each one's newest checkpoint: none, 2 and 4
        checkpoints = open_checkpoints(tmp_path / str(i))
        with pytest.raises(Killed):
            fit_replicas(replicas, base, [work(killed_at(runs[i], last), journals[i], checkpoints)])
        checkpoints.close()
    doors = [open_checkpoints(tmp_path / str(i)) for i in range(3)]
    again = [work(*each) for each in zip(runs, journals, doors, strict=True)]
    fitted = fit_replicas(replicas, base, again)
    for door in doors:
        door.close()
    assert [fitted[i].resumed_at for i in range(3)] == [None, 2, 4]
    assert journals == wanted


def test_a_member_that_fails_is_reported_and_the_others_go_on():
    program = toy.program(placement=placement(1))
    replicas, base, _ = slots(program, 2, "map")

    def broken(step: int) -> toy.Points:
        raise OSError("the disk is full")

    runs = [toy_run({"lr": 0.05}, seed, program, base=base) for seed in range(3)]
    runs[0] = runs[0]._replace(batches=broken)
    journals: list[Journal] = [{} for _ in runs]
    fitted = fit_replicas(replicas, base, [work(r, j) for r, j in zip(runs, journals, strict=True)])
    assert isinstance(fitted[0], OSError)
    assert [max(step for step, _ in journal) for journal in journals[1:]] == [6, 6]


def test_slots_that_do_not_divide_over_the_mesh_are_refused():
    with pytest.raises(ValueError, match=r"slots=3 is not a multiple of mesh.replica=2"):
        slots(toy.program(), 3, "map", replica=2)
