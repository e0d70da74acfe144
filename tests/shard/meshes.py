"""The meshes and models of "same numbers on every mesh". A new axis or model is one row more."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from adaptlab import leaf
from adaptlab.adapt import Adaptation, full, lora
from adaptlab.data import Batch
from adaptlab.models import (
    BertShape,
    GPT2Shape,
    LlamaShape,
    Model,
    bert,
    cross_entropy,
    gpt2,
    language_modelling,
    llama,
)
from adaptlab.optim import adamw
from adaptlab.shard import Placement, make_mesh, place
from adaptlab.stats import Mean
from adaptlab.train import Program, device_numbers, make_program

ROWS, LENGTH, VOCABULARY = 8, 8, 80


class Row(NamedTuple):
    """A model and how it is trained: `loss` is made from it, for the program's numbers."""

    model: Callable[..., Model]
    loss: Callable[[Model], Any]


def _matched(model: Model) -> Any:
    """An encoder's loss: each token's hidden state, read as logits, finds its target."""

    def loss(params: Any, batch: Batch, key: jax.Array) -> Mean:
        hidden = model.apply(params, batch.tokens, segments=batch.segments)
        nats = cross_entropy(hidden, batch.targets % hidden.shape[-1])
        return Mean((nats * batch.weights).sum(), batch.weights.sum())

    return loss


LLAMA = LlamaShape(VOCABULARY, width=32, depth=3, heads=8, kv_heads=4, head_width=4, ffn_width=48, tied=False)
MODELS: dict[str, Row] = {
    "llama": Row(lambda **options: llama(LLAMA, **options), language_modelling),
    "gpt2": Row(lambda **options: gpt2(GPT2Shape(VOCABULARY, 32, 3, 8, 48, 16), **options), language_modelling),
    "bert": Row(lambda **options: bert(BertShape(VOCABULARY, 32, 3, 8, 48, 16), **options), _matched),
}

METHODS: dict[str, Callable[[], Adaptation]] = {"full": full, "lora": lambda: lora(4)}

MESHES: dict[str, dict[str, Any]] = {
    "data": {"data": 8},
    "fsdp": {"fsdp": 8},
    "tensor": {"tensor": 8},
    "data x fsdp": {"data": 2, "fsdp": 4},
    "data x tensor": {"data": 4, "tensor": 2},
    "fsdp x tensor": {"fsdp": 4, "tensor": 2},
    "data x fsdp x tensor": {"data": 2, "fsdp": 2, "tensor": 2},
}


def batch(seed: int, rows: int = ROWS) -> Batch:
    """Packed rows: two segments, some padding, targets that do not count."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(1, VOCABULARY, (2, rows, LENGTH), np.int32)
    segments = np.sort(rng.integers(1, 3, (rows, LENGTH), np.int32), axis=1)
    segments[1, -2:] = 0
    starts = np.argmax(segments == 2, axis=1)[:, None]
    positions = np.where(segments == 2, np.arange(LENGTH) - starts, np.arange(LENGTH)).astype(np.int32)
    weights = ((segments > 0) * (rng.random((rows, LENGTH)) < 0.8)).astype(np.float32)
    return Batch(tokens, targets, segments, positions, weights)


def adam(lr: Any) -> optax.GradientTransformation:
    return adamw(lr, total_steps=8, clip=1.0, eps=1e-5)


def momentum(lr: Any) -> optax.GradientTransformation:
    """What comes of gradients in several steps without magnifying what is rounding in them, as Adam's division does."""
    return optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(100.0 * lr, momentum=0.9))


class Trained(NamedTuple):
    """What a few steps gave: the losses and norms of gradients, and the state, on the host."""

    metrics: list[dict[str, float]]
    state: Any
    program: Program
    arguments: tuple[Any, ...]


@functools.cache
def base_of(row: Row) -> Any:
    return scattered_base(row.model())


def scattered_base(model: Model) -> Any:
    """Weights at random, biases and scales too, large enough for gradients above rounding: on the host."""
    leaves, structure = jax.tree.flatten(jax.jit(model.init)(jax.random.key(0)))
    rng = np.random.default_rng(0)
    moved = [np.asarray(x) + 0.05 * rng.normal(size=x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(structure, moved)


def train(
    row: Row,
    adapt: Callable[[], Adaptation],
    mesh: dict[str, Any] | None,
    *,
    steps: int = 3,
    rows: int = ROWS,
    accumulate: int = 1,
    optimizer: Callable[[Any], optax.GradientTransformation] = adam,
    change: Callable[[Placement], Placement] = lambda placement: placement,
    **options: Any,
) -> Trained:
    """Adapt for a few steps, on a mesh of all eight devices or (None) on one device alone."""
    devices = jax.devices()[:1] if mesh is None else None
    model = row.model(**options)
    placement = change(Placement(make_mesh(**(mesh or {}), devices=devices), model.axes()))
    base = base_of(row)
    base = place(base, placement.shardings(leaf.array_axes(placement.axes, base), base))
    loss = row.loss(model)
    program = make_program(
        lambda _: loss,
        lambda _: adapt(),
        lambda n: optimizer(n["lr"]),
        accumulate=accumulate,
        placement=placement,
    )
    numbers, seed = device_numbers({"lr": 1e-3}, 0, base)
    base = program.prepare(numbers, base)
    state, metrics = program.init(numbers, seed, base), []
    given = jax.device_put(batch(0, rows), placement.batch)
    for step in range(steps):
        given = jax.device_put(batch(step, rows), placement.batch)
        state, said = program.step(numbers, seed, state, base, given)
        metrics.append(jax.device_get(said))
    return Trained(metrics, jax.device_get(state), program, (numbers, seed, state, base, given))
