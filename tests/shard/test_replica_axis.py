"""The `replica` axis: runs side by side on the devices of a mesh are each the run alone."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from adaptlab.models import LlamaShape, language_modelling, llama
from adaptlab.optim import adamw
from adaptlab.shard import Placement, make_mesh, place
from adaptlab.train import Program, compile_replicas, device_numbers, make_program
from adaptlab.train.replicas import How
from tests.shard.meshes import METHODS, batch, scattered_base

RUNS, STEPS = 32, 2
CURVES = ("loss", "grad_norm")
MODEL = llama(LlamaShape(32, width=16, depth=2, heads=4, kv_heads=2, head_width=4, ffn_width=24))
NUMBERS = [{"lr": 1e-3 * (1 + run % 4)} for run in range(RUNS)]


def program(placement: Placement | None = None) -> Program:
    loss = language_modelling(MODEL)
    return make_program(
        lambda _: loss,
        lambda _: METHODS["lora"](),
        lambda n: adamw(n["lr"], total_steps=STEPS, clip=1.0, eps=1e-5),
        placement=placement,
    )


def text(run: int, step: int) -> Any:
    given = batch(STEPS * run + step)
    return given._replace(tokens=given.tokens % 32, targets=given.targets % 32)


def moments(state: Any) -> Any:
    """Adam's running mean of the gradients. (Its steps divide by their size, which magnifies rounding where it is.)"""
    return next(part.mu for part in state.opt_state if hasattr(part, "mu"))


@pytest.fixture(scope="module")
def base() -> Any:
    return scattered_base(MODEL)


@pytest.fixture(scope="module")
def alone(base: Any) -> list[tuple[Any, Any]]:
    """Each run by itself, on one device: its losses and norms of gradients, and the first moments they leave."""
    one, found = program(), []
    for run in range(RUNS):
        numbers, seed = device_numbers(NUMBERS[run], run)
        state, losses = one.init(numbers, seed, base), []
        for step in range(STEPS):
            state, metrics = one.step(numbers, seed, state, base, text(run, step))
            losses.append([float(metrics[name]) for name in CURVES])
        found.append((losses, jax.device_get(moments(state))))
    return found


def together(base: Any, sizes: dict[str, Any], how: How) -> list[tuple[Any, Any]]:
    placement = Placement(make_mesh(**sizes), MODEL.axes())
    on_mesh = place(base, placement.shardings(placement.axes, base))
    many = program(placement)
    slots = compile_replicas(many, NUMBERS[0], on_mesh, text(0, 0), RUNS, how, placement=placement)
    stack: Callable[..., Any] = lambda *x: np.stack(x)  # noqa: E731
    numbers_S = jax.tree.map(stack, *[{name: np.float32(x) for name, x in n.items()} for n in NUMBERS])
    active_S, seeds_S = np.ones(RUNS, bool), np.arange(RUNS, dtype=np.uint32)
    states_S, losses = slots.empty(), []
    for run in range(RUNS):
        index = device_numbers({}, run, on_mesh)[1].astype(np.int32)
        state = many.init(*device_numbers(NUMBERS[run], run, on_mesh), on_mesh)
        states_S = slots.put(states_S, index, state)
    for step in range(STEPS):
        batch_S = jax.tree.map(stack, *[text(run, step) for run in range(RUNS)])
        given = slots.spread((numbers_S, seeds_S, active_S, batch_S))
        states_S, metrics_S = slots.step(given[0], given[1], states_S, given[2], on_mesh, given[3])
        losses.append(np.stack([metrics_S[name] for name in CURVES]))
    found = jax.device_get(moments(states_S))
    return [(np.stack(losses)[:, :, run].tolist(), [x[run] for x in jax.tree.leaves(found)]) for run in range(RUNS)]


CASES = [
    ({"replica": 8}, "vmap"),
    pytest.param({"replica": 8}, "map", marks=pytest.mark.slow),
    pytest.param({"replica": 4, "data": 2}, "vmap", marks=pytest.mark.slow),
    pytest.param({"replica": 2, "fsdp": 2, "tensor": 2}, "map", marks=pytest.mark.slow),
    pytest.param({"replica": 2, "fsdp": 2, "tensor": 2}, "vmap", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("sizes", "how"), CASES)
def test_32_runs_over_eight_devices_are_the_32_alone(base: Any, alone: Any, sizes: dict[str, Any], how: How):
    for (curves, got), (wanted, means) in zip(together(base, sizes, how), alone, strict=True):
        np.testing.assert_allclose(curves, wanted, rtol=1e-5)
        ours, theirs = (np.concatenate([x.ravel() for x in part]) for part in (got, jax.tree.leaves(means)))
        assert np.linalg.norm(ours - theirs) <= 1e-5 * np.linalg.norm(theirs)
