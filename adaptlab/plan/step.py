"""The training step that a study would run, compiled for devices that need not exist: no array is ever made."""

import logging
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from adaptlab import config
from adaptlab.plan.hlo import Module, parse_hlo
from adaptlab.plan.job import (
    Job,
    arguments,
    check_batch,
    describe,
    make_program,
    model_flops,
    placed,
    scanned,
    state_shapes,
)
from adaptlab.plan.memory import Memory, read_memory

__all__ = ["Step", "compile_step"]

log = logging.getLogger(__name__)


class Step(NamedTuple):
    """A compiled step, or one that the compiler refused.

    Attributes:
      fits: whether the compiler accepted it.
      refusal: what it said if not.
      module: the program, or what it was when it was refused; None if nothing is known.
      memory: what lies in memory at the peak; None if nothing is known.
      held: bytes of the base on one chip that the step does not read (full fine-tuning trains a copy).
      parameters: of the base.
      trained: of them or beside them.
      flops: matrix products of one update on all chips, nothing computed twice.
      mesh: its devices.
      seconds: how long compiling took.
    """

    fits: bool
    refusal: str
    module: Module | None
    memory: Memory | None
    held: int
    parameters: int
    trained: int
    flops: int
    mesh: jax.sharding.Mesh
    seconds: float


def compile_step(job: Job, devices: Sequence[Any]) -> Step:
    """Compile a job's step for devices and read what it needs.

    Args:
      job: what to plan.
      devices: all of them, real or described by libtpu.

    Raises:
      ValueError: sizes that do not go together (the mesh, the batch, the microbatches).
    """
    mesh = config.instantiate({k: v for k, v in job.mesh.items() if k != "devices"}, devices=devices)
    model = config.instantiate(scanned(job.model))
    placement = placed(job, model, mesh)
    check_batch(job, placement)
    numbers, seed, base, batch = arguments(job, model, placement)
    program = make_program(job, model, placement)
    start = time.perf_counter()
    state = state_shapes(job, model, placement, jax.eval_shape(program.init, numbers, seed, base, None))
    lowered = program.step.lower(numbers, seed, state, base, batch)
    with tempfile.TemporaryDirectory() as folder:
        dump = Path(folder)
        compiled, refusal = _compiled(lowered, dump)
        seconds = time.perf_counter() - start
        text = compiled.as_text() if compiled is not None else _dumped(dump)
        module = parse_hlo(text) if text else None
        memory = None if module is None else _memory(dump, module, compiled)
    counts = describe(job)
    return Step(
        compiled is not None,
        refusal,
        module,
        memory,
        _unread(module, base),
        counts["parameters"],
        counts["trained"],
        model_flops(job),
        mesh,
        seconds,
    )


def _compiled(lowered: Any, dump: Path) -> tuple[Any, str]:
    """The compiled step, or None and why the compiler refused it."""
    try:
        return lowered.compile(compiler_options={"xla_dump_to": str(dump), "xla_dump_hlo_as_text": True}), ""
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return None, str(error)


def _dumped(dump: Path) -> str:
    """The program that a refusal is about, as far as the compiler came."""
    files = [path for path in dump.glob("*after_optimizations.txt") if path.stat().st_size]
    return max(files, key=lambda path: path.stat().st_size).read_text() if files else ""


def _memory(dump: Path, module: Module, compiled: Any) -> Memory | None:
    said = compiled.memory_analysis() if compiled is not None else None
    beyond = max(0, said.output_size_in_bytes - said.alias_size_in_bytes) if said else 0
    try:
        return read_memory(dump, module, code=said.generated_code_size_in_bytes if said else 0, beyond=beyond)
    except ValueError as error:
        log.warning("%s", error)
        return None


def _unread(module: Module | None, base: Any) -> int:
    """Bytes of the base on one chip that the program has no argument for."""
    if module is None:
        return 0
    entry = module.computations[module.entry].instructions.values()
    read = sum(i.shapes[0].bytes for i in entry if i.opcode == "parameter" and i.op_name.startswith("base"))
    whole = sum(x.dtype.itemsize * _local(x) for x in jax.tree.leaves(base))
    return max(0, whole - read)


def _local(x: Any) -> int:
    elements = 1
    for size in x.sharding.shard_shape(x.shape):
        elements *= size
    return elements
