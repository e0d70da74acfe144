"""Whatever number two runs differ in, a run in a batch of runs has the curve it has alone."""

import functools
from collections.abc import Generator
from typing import Any

import jax
import numpy as np
import pytest

from adaptlab import config
from adaptlab.models import LlamaShape, llama
from adaptlab.shard import Placement, make_mesh, place
from adaptlab.study import members, method_program
from adaptlab.train import Clock, How, Run, Seat, Work, compile_replicas, course, fit, fit_replicas
from tests.laws.table import text_batch
from tests.train.toy import NOWHERE, Journal, into

STEPS = 100
MODEL = llama(LlamaShape(vocab_size=32, width=16, depth=2, heads=4, kv_heads=2, head_width=6, ffn_width=20))
RECIPE = {
    "adapt": {"_target_": "adaptlab.adapt.lora", "rank": 4, "alpha": 8.0, "effective_rank": 4},
    "optim": {
        "_target_": "adaptlab.optim.adamw",
        "lr": 3e-3,
        "schedule": {"_target_": "adaptlab.optim.linear", "warmup": 0.1, "final": 0.1, "offset": 1},
        "weight_decay": 0.01,
        "clip": 1.0,
        "groups": {"_target_": "adaptlab.optim.group_depth.by_depth", "factor": 1.5},
    },
    "loss": {
        "_target_": "adaptlab.models.language_modelling",
        "dropout": 0.05,
        "label_noise": 0.02,
        "label_smoothing": 0.05,
    },
    "terms": {"l2_sp": {"_target_": "adaptlab.train.l2_sp", "strength": 0.01}},
    "stopping": {"_target_": "adaptlab.train.early_stopping", "patience": 1000, "min_delta": 0.0},
}
OTHER = {
    "adapt.alpha": 16.0,
    "adapt.effective_rank": 2.0,
    "optim.lr": 1e-2,
    "optim.schedule.warmup": 0.5,
    "optim.schedule.final": 1.0,
    "optim.schedule.offset": 0.0,
    "optim.weight_decay": 0.5,
    "optim.clip": 0.1,
    "optim.b1": 0.5,
    "optim.b2": 0.9,
    "optim.eps": 1e-3,
    "optim.groups.factor": 4.0,
    "loss.dropout": 0.5,
    "loss.label_noise": 0.5,
    "loss.label_smoothing": 0.5,
    "terms.l2_sp.strength": 5.0,
    "stopping.patience": 2.0,
    "stopping.min_delta": 10.0,
}


@functools.cache
def lab() -> tuple[Placement, Any, Any, Any]:
    placement = Placement(make_mesh(devices=jax.devices()[:1]), MODEL.axes())
    params = jax.device_get(jax.jit(MODEL.init)(jax.random.key(0)))
    base = place(params, placement.shardings(placement.axes, params))
    (plain,) = members({"plain": config.validate(RECIPE)}, [0])
    program = method_program(plain, MODEL, STEPS, target="text", placement=placement)
    return placement, base, plain, program


def members_of_the_sweep() -> dict[str, tuple[dict[str, float], int]]:
    """The plain recipe, another seed, and each number changed."""
    numbers = lab()[2].numbers
    changed = {name: (numbers | {name: value}, 0) for name, value in OTHER.items() if name != "stopping.min_delta"}
    both = {"stopping.patience": 2.0, "stopping.min_delta": 10.0}
    return {"plain": (numbers, 0), "seed": (numbers, 1), **changed, "stopping.min_delta": (numbers | both, 0)}


def run_of(numbers: dict[str, float], seed: int, *, host: bool) -> Run:
    placement, base, _, program = lab()

    def batches(step: int) -> Any:
        batch = jax.device_get(text_batch(1000 * seed + step % 16))
        return batch if host else jax.device_put(batch, placement.batch)

    def probe(numbers: Any, base: Any, delta: Any) -> dict[str, float]:
        return {"held_out/text/loss": float(np.sum(jax.device_get(jax.tree.leaves(delta)[0])))}

    return Run(program, numbers, seed, base, batches, probe, STEPS, measure_every=25, save_every=STEPS)


def test_every_number_of_the_recipe_is_varied():
    assert set(OTHER) == set(lab()[2].numbers)


@functools.cache
def alone() -> dict[str, Journal]:
    journals: dict[str, Journal] = {}
    for name, member in members_of_the_sweep().items():
        fit(run_of(*member, host=False), NOWHERE, into(journals.setdefault(name, {})))
    return journals


@pytest.mark.parametrize("how", ["vmap", "map"])
def test_a_member_has_the_curve_it_has_alone_for_every_number(how: How):
    placement, base, plain, program = lab()
    sweep = members_of_the_sweep()
    batch = run_of(plain.numbers, 0, host=True).batches(0)
    slots = compile_replicas(program, plain.numbers, base, batch, len(sweep), how, placement=placement)
    journals: dict[str, Journal] = {name: {} for name in sweep}

    def work(name: str) -> Work:
        run = run_of(*sweep[name], host=True)

        def begin(seat: Seat, clock: Clock) -> Generator[Any, Any, Any]:
            return course(run, seat, NOWHERE, into(journals[name]), clock)

        return Work(run.numbers, run.seed, begin)

    fit_replicas(slots, base, [work(name) for name in sweep])
    for name, wanted in alone().items():
        assert journals[name].keys() == wanted.keys(), name
        np.testing.assert_allclose(list(journals[name].values()), list(wanted.values()), rtol=1e-4, err_msg=name)


def test_every_number_makes_a_curve_of_its_own():
    curves = {name: tuple(journal.items()) for name, journal in alone().items()}
    same = {"plain", "stopping.patience"}  # a patience alone ends nothing that improves
    assert len(set(curves.values())) >= len(curves) - len(same) + 1
    assert max(step for step, _ in alone()["stopping.min_delta"]) < STEPS
