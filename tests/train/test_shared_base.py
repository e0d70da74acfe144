"""Sixteen LoRA runs over one base, in one program: what they cost, and that each is the run it would be alone."""

import functools
from typing import Any

import jax
import numpy as np

from adaptlab.adapt import lora
from adaptlab.data import Batch
from adaptlab.models import LlamaShape, language_modelling, llama
from adaptlab.optim import adamw
from adaptlab.rng import generator_for
from adaptlab.shard import Placement, make_mesh, place
from adaptlab.train import Compiled, Program, Replicas, compile_program, compile_replicas, device_numbers, make_program

RUNS, STEPS, ROWS, LENGTH = 16, 50, 4, 12
SHAPE = LlamaShape(64, width=32, depth=2, heads=4, kv_heads=2, head_width=8, ffn_width=64)
MODEL = llama(SHAPE)
# One device, so that the compiler's account of memory is that of all there is.
MESH = make_mesh(devices=jax.devices()[:1])
PLACEMENT = Placement(MESH, MODEL.axes())
# Rates at which training is stable: at 1e-2 it is not, and rounding grows to half a percent of the loss by step 50.
MEMBERS = [({"lr": lr, "alpha": alpha}, seed) for lr in (1e-3, 3e-3) for alpha in (2.0, 8.0) for seed in range(4)]


def program() -> Program:
    return make_program(
        lambda numbers: language_modelling(MODEL),
        lambda numbers: lora(4, alpha=numbers["alpha"]),
        lambda numbers: adamw(numbers["lr"], total_steps=STEPS, clip=1.0),
    )


def host_batch(seed: int, step: int) -> Batch:
    """Counting upwards by a stride of the row's own: something that can be learnt."""
    rng = generator_for(seed, "rows", step)
    start, stride = rng.integers(0, SHAPE.vocab_size, (ROWS, 1)), rng.integers(1, 4, (ROWS, 1))
    rows = ((start + stride * np.arange(LENGTH + 1)) % SHAPE.vocab_size).astype(np.int32)
    positions = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), (ROWS, LENGTH))
    ones = np.ones((ROWS, LENGTH), np.int32)
    return Batch(rows[:, :-1], rows[:, 1:], ones, positions, ones.astype(np.float32))


@functools.cache
def base() -> Any:
    params = jax.jit(MODEL.init)(jax.random.key(0))
    return place(params, PLACEMENT.shardings(PLACEMENT.axes, params))


@functools.cache
def single() -> Compiled:
    return compile_program(program(), *device_numbers(*MEMBERS[0], base()), base(), on_device(host_batch(0, 0)))


@functools.cache
def together() -> Replicas:
    return compile_replicas(program(), MEMBERS[0][0], base(), host_batch(0, 0), RUNS, "vmap", placement=PLACEMENT)


def on_device(batch: Batch) -> Batch:
    return jax.device_put(batch, PLACEMENT.batch)


def size(arrays: Any) -> int:
    return sum(x.nbytes for x in jax.tree.leaves(arrays))


def started(numbers: dict[str, float], seed: int) -> tuple[Any, Any, Any]:
    scalars = device_numbers(numbers, seed, base())
    return *scalars, single().program.init(*scalars, base(), None)


def curve_alone(numbers: dict[str, float], seed: int) -> list[float]:
    numbers_, seed_, state = started(numbers, seed)
    losses = []
    for step in range(STEPS):
        batch = on_device(host_batch(seed, step))
        state, metrics = single().program.step(numbers_, seed_, state, base(), batch)
        losses.append(float(metrics["loss"]))
    return losses


def curves_together() -> np.ndarray:
    replicas, states = together(), together().empty()
    for slot, member in enumerate(MEMBERS):
        states = replicas.put(states, np.int32(slot), started(*member)[-1])
    numbers = {name: np.array([n[name] for n, _ in MEMBERS], np.float32) for name in MEMBERS[0][0]}
    seeds, active = np.array([seed for _, seed in MEMBERS], np.uint32), np.ones(RUNS, bool)
    numbers_S, seeds_S, active_S = replicas.spread((numbers, seeds, active))
    losses = []
    for step in range(STEPS):
        batches = [host_batch(seed, step) for _, seed in MEMBERS]
        batch_S = replicas.spread(jax.tree.map(lambda *x: np.stack(x), *batches))
        states, metrics = replicas.step(numbers_S, seeds_S, states, active_S, base(), batch_S)
        losses.append(np.asarray(metrics["loss"]))
    return np.stack(losses, axis=1)


def test_sixteen_runs_take_less_memory_than_one_base_sixteen_states_and_sixteen_steps():
    # Of a stack that is written out, as shallow ones are on a CPU. In a loop over layers, vmap's temporaries are a
    # fifth more than sixteen times those of one run; `how="map"` takes those of one run at a time.
    step: Any = single().program.step
    state, temporary = size(started(*MEMBERS[0])[-1]), step.memory_analysis().temp_size_in_bytes
    assert together().memory_bytes < size(base()) + RUNS * (state + temporary)


def test_sixteen_runs_at_once_have_the_curves_of_sixteen_runs():
    curves = curves_together()
    alone = np.array([curve_alone(*member) for member in MEMBERS])
    np.testing.assert_allclose(curves, alone, rtol=1e-4)
    assert len({round(float(x), 6) for x in alone[:, -1]}) == RUNS  # sixteen runs, not one of them twice
    assert np.median(alone[:, -1] / alone[:, 0]) < 0.99
