"""What is planned: configs and sizes, and the abstract arrays and the program that they stand for."""

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from adaptlab import adapt, config, data, flops, leaf, models, shard, train, tree
from adaptlab.config.check import locate
from adaptlab.train.program import state_shardings

__all__ = [
    "Job",
    "arguments",
    "check_batch",
    "describe",
    "make_program",
    "model_flops",
    "placed",
    "scanned",
    "state_shapes",
]

_STEPS = 1000  # for a schedule: any number is the same program


class Job(NamedTuple):
    """What is planned: configs, as plain containers, and sizes.

    Attributes:
      model: the config of a `Model`.
      adapt: of an adaptation.
      optim: of an optimiser.
      mesh: of the mesh.
      loss: of the loss; None is next-token cross-entropy for logits of tokens and classification for those of texts.
      topology: e.g. "v5e:4x4".
      slices: how many of these.
      batch_size: rows of an update, over all chips.
      length: tokens of a row.
      accumulate: microbatches of an update.
      base_dtype: of the base's numbers, "float32" or "bfloat16".
      quantize: how the base is rounded: a scheme, or a mapping (`adaptlab.models.Quantization`); None leaves it.
      moments: where the optimiser's state rests: None as what it belongs to, "zero1" shared out over `data` too, "host"
        in the host's memory.
    """

    model: Mapping[str, Any]
    adapt: Mapping[str, Any]
    optim: Mapping[str, Any]
    mesh: Mapping[str, Any]
    loss: Mapping[str, Any] | None
    topology: str
    slices: int
    batch_size: int
    length: int
    accumulate: int
    base_dtype: str
    quantize: str | Mapping[str, Any] | None
    moments: shard.Moments | None = None


def describe(job: Job) -> Mapping[str, int]:
    """Return the numbers of parameters of a job, without compiling: of the base, and of what trains."""
    model = config.instantiate(job.model)
    base = arguments(job, model, None)[2]
    adaptation = _build(job, model, _numbers(job))[0]
    delta = jax.eval_shape(adaptation.init, jax.random.key(0), base)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return {"parameters": tree.count(shapes), "trained": adapt.count_trained(adaptation, base, delta)}


def scanned(model: Mapping[str, Any]) -> dict[str, Any]:
    """A model's config, scanned as on an accelerator: `unroll=None` asks the backend, and that is this machine's."""
    takes = "unroll" in inspect.signature(locate(model["_target_"])).parameters
    return {**model, "unroll": 1} if takes and model.get("unroll") is None else dict(model)


def placed(job: Job, model: Any, mesh: jax.sharding.Mesh) -> shard.Placement:
    """Return where a job's arrays live.

    Raises:
      ValueError: a place of the moments that there is not.
    """
    return shard.Placement(mesh, model.axes()).with_moments(job.moments)


def check_batch(job: Job, placement: shard.Placement) -> None:
    """Raise ValueError for rows that the microbatches and the mesh do not divide."""
    rows, parts = job.batch_size // max(job.accumulate, 1), placement.size("batch")
    if job.accumulate < 1 or job.batch_size % job.accumulate or rows % parts:
        good = [n for n in range(1, job.batch_size + 1) if job.batch_size % (n * parts) == 0]
        raise ValueError(
            f"batch_size={job.batch_size} rows in accumulate={job.accumulate} microbatches do not divide over the "
            f"{parts} parts of a batch (data x fsdp x expert); "
            + (f"choose accumulate from {good}." if good else f"choose batch_size from multiples of {parts}.")
        )


def _base(job: Job, model: Any) -> Any:
    """The base's weights as they rest: cast, then rounded (traced, for their shapes)."""
    params = model.init(jax.random.key(0))
    dtype = jnp.dtype(job.base_dtype)
    if job.quantize is not None:
        node = {"scheme": job.quantize} if isinstance(job.quantize, str) else job.quantize
        how = models.Quantization(**config.validate(node, "quantize", models.Quantization))
        params = models.quantize(params, how)
    return jax.tree.map(
        lambda x: x if leaf.is_quantized(x) else x.astype(dtype), params, is_leaf=lambda x: leaf.is_quantized(x)
    )


def arguments(job: Job, model: Any, placement: shard.Placement | None) -> tuple[Any, Any, Any, Any]:
    """Return `(numbers, seed, base, batch)` of a step, as shapes, with the places where they rest."""
    everywhere = None if placement is None else placement.replicated
    rows = None if placement is None else placement.batch
    numbers = {name: jax.ShapeDtypeStruct((), jnp.float32, sharding=everywhere) for name in _numbers(job)}
    seed = jax.ShapeDtypeStruct((), jnp.uint32, sharding=everywhere)
    batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), _batch(job, model))
    base = jax.eval_shape(lambda: adapt.prepared(_build(job, model, _numbers(job))[0], _base(job, model)))
    if placement is not None:
        base = _placed(base, leaf.array_axes(placement.axes, base), placement)
    return numbers, seed, base, batch


def _placed(arrays: Any, axes: Any, placement: shard.Placement) -> Any:
    return jax.tree.map(
        lambda x, there: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=there),
        arrays,
        placement.shardings(axes, arrays),
    )


def _batch(job: Job, model: Any) -> Any:
    """The shapes of a batch: of packed text, or of labelled texts for a model with logits of classes."""
    labelled = _labelled(model)

    def zeros() -> Any:
        rows = jnp.zeros((job.batch_size, job.length), jnp.int32)
        if labelled:
            return data.LabelledBatch(rows, rows[:, 0], rows, jnp.zeros(job.batch_size))
        return data.Batch(rows, rows, rows, rows, jnp.zeros(rows.shape))

    return jax.eval_shape(zeros)


def _labelled(model: Any) -> bool:
    params = jax.eval_shape(model.init, jax.random.key(0))
    logits = jax.eval_shape(model.apply, params, jax.ShapeDtypeStruct((1, 2), jnp.int32))
    return len(logits.shape) == 2


def _numbers(job: Job) -> dict[str, float]:
    return config.split({"adapt": job.adapt, "optim": job.optim, "loss": job.loss})[1]


def _build(job: Job, model: Any, numbers: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """The adaptation, the optimiser and the loss of a job for these numbers, traced or not."""
    skeleton, _ = config.split({"adapt": job.adapt, "optim": job.optim, "loss": job.loss})
    node = config.fill(skeleton, numbers)
    adaptation = config.instantiate(node["adapt"], fresh=model.init, slots=model.slots())
    optimizer = config.instantiate(node["optim"], total_steps=_STEPS)
    if node["loss"] is None:
        make: Callable[..., Any] = models.classification if _labelled(model) else models.language_modelling
        return adaptation, optimizer, make(model)
    return adaptation, optimizer, config.instantiate(node["loss"], model=model)


def make_program(
    job: Job, model: Any, placement: shard.Placement | None, accumulate: int | None = None
) -> train.Program:
    """Return the program that trains, as a study makes it."""
    build = functools.partial(_build, job, model)
    return train.make_program(
        lambda numbers: build(numbers)[2],
        lambda numbers: build(numbers)[0],
        lambda numbers: build(numbers)[1],
        accumulate=job.accumulate if accumulate is None else accumulate,
        placement=placement,
    )


def state_shapes(job: Job, model: Any, placement: shard.Placement, state: Any) -> Any:
    """Return a state's shapes with the places where they rest, without compiling what makes it."""
    adaptation, optimizer, _ = _build(job, model, _numbers(job))
    there = state_shardings(state, adaptation, optimizer, placement)
    if placement.moments_on_host:
        host = jax.tree.map(lambda one: one.with_memory_kind("pinned_host"), there.opt_state)
        there = there._replace(opt_state=host)
    return jax.tree.map(lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state, there)


def model_flops(job: Job) -> int:
    """Return the matrix products of one update: of the same step on one device, nothing of it computed twice."""
    model = config.instantiate(_plain(job.model))
    numbers, seed, base, batch = arguments(job, model, None)
    program = make_program(job, model, None, accumulate=1)
    state = jax.eval_shape(program.init, numbers, seed, base, None)
    return flops.count_flops(program.step, numbers, seed, state, base, batch)


def _plain(model: Mapping[str, Any]) -> dict[str, Any]:
    return {**model, **{k: v for k, v in {"remat": "none", "unroll": 1}.items() if k in model}}
