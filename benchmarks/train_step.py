"""How fast is a training step? adaptlab against a plain hand-written JAX step, and against torch + PEFT.

    python -m benchmarks.train_step [--depth 30] [--batch 4] [--length 128] [--rounds 7] [--torch PYTHON]

All sides train a Llama of SmolLM2's sizes (random weights: speed does not depend on them) in float32 with AdamW and
clipping at global norm 1, and step in turns, so that a slow moment of the machine hits all. Ratios are of the seconds
of paired steps, the other's over adaptlab's: above 1, adaptlab is faster. `--torch` names a Python with the packages of
the `reference` extra; there, eager and compiled, float32 and bfloat16, all with fused AdamW, run under the same
allocator settings (`GLIBC_TUNABLES`), which the table states. FLOPs are those of the step's matrix products per
token, in units of the number N of the base's parameters.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from adaptlab import adapt, optim, train, tree
from adaptlab.data import Batch
from adaptlab.models import LlamaShape, language_modelling, llama
from benchmarks import handwritten

RANK, ALPHA, LR = 8, 16.0, 1e-4
Stepper = Callable[[], float]


def timed(step: Callable[[], Any]) -> float:
    begun = time.perf_counter()
    jax.block_until_ready(step())
    return time.perf_counter() - begun


def ours(shape: LlamaShape, mode: str, batch: Batch) -> tuple[Stepper, float]:
    """adaptlab's step, as a study compiles it, and its FLOPs per token over N."""
    model = llama(shape)
    method = adapt.full() if mode == "full" else adapt.lora(RANK, alpha=ALPHA)
    program = train.make_program(
        lambda numbers: language_modelling(model),
        lambda numbers: method,
        lambda numbers: optim.adamw(numbers["lr"], total_steps=1000, clip=1.0),
    )
    numbers, seed = train.device_numbers({"lr": LR}, 0)
    base = jax.jit(model.init)(jax.random.key(0))
    compiled = train.compile_program(program, numbers, seed, base, batch)
    state = compiled.program.init(numbers, seed, base)

    def step() -> Any:
        nonlocal state
        state, metrics = compiled.program.step(numbers, seed, state, base, batch)
        return state, metrics

    return lambda: timed(step), compiled.flops / batch.tokens.size / tree.count(base)


def theirs(shape: LlamaShape, mode: str, batch: Batch) -> Stepper:
    """The hand-written step."""
    base = jax.jit(lambda key: handwritten.init(key, shape))(jax.random.key(0))
    lora = mode == "lora"
    trained = handwritten.init_lora(jax.random.key(1), base, RANK) if lora else jax.tree.map(jnp.copy, base)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LR, weight_decay=0.0))
    opt_state = optimizer.init(trained)
    run = handwritten.make_step(shape, optimizer, lora, ALPHA / RANK)
    base = base if lora else None

    def step() -> Any:
        nonlocal trained, opt_state
        trained, opt_state, value = run(trained, opt_state, base, batch.tokens, batch.targets)
        return trained, opt_state, value

    return lambda: timed(step)


def torch_worker(python: str, options: dict[str, Any], stack: ExitStack) -> Stepper:
    """A process of its own that steps when it is told to, and ends with the stack."""
    script = os.path.join(os.path.dirname(__file__), "torch_step.py")
    worker = subprocess.Popen(
        [python, script, json.dumps(options)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    stack.callback(worker.kill)
    assert worker.stdin is not None
    assert worker.stdout is not None
    if not worker.stdout.readline().startswith("ready"):
        raise SystemExit(f"{python} {script} did not start: does it have torch, transformers and peft?")

    def step() -> float:
        worker.stdin.write("step\n")  # pyright: ignore[reportOptionalMemberAccess]
        worker.stdin.flush()  # pyright: ignore[reportOptionalMemberAccess]
        return float(worker.stdout.readline())  # pyright: ignore[reportOptionalMemberAccess]

    return step


def compare(sides: dict[str, Stepper], rounds: int) -> dict[str, np.ndarray]:
    """Step all sides in turn; the first round compiles.

    Whose turn comes after whose matters: the other's threads and memory are still about. So a turn is two steps, of
    which the second counts, and every round begins with another side.
    """
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            sides[name]()
            seconds[name].append(sides[name]())
    return {name: np.array(x[1:]) for name, x in seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("depth", 30), ("batch", 4), ("length", 128), ("rounds", 7)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--torch", metavar="PYTHON")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="of the torch sides")
    parser.add_argument("--modes", nargs="+", default=["full", "lora"])
    o = parser.parse_args()
    shape = LlamaShape(49152, width=576, depth=o.depth, heads=9, kv_heads=3, head_width=64, ffn_width=1536)
    tokens = np.random.default_rng(0).integers(0, shape.vocab_size, (2, o.batch, o.length), np.int32)
    positions = np.broadcast_to(np.arange(o.length, dtype=np.int32), tokens[0].shape)
    ones = np.ones_like(tokens[0])
    batch = jax.tree.map(jnp.asarray, Batch(*tokens, ones, positions, ones.astype(np.float32)))
    console = Console()
    console.print(f"{shape}\nbatch {o.batch} x {o.length} tokens, float32 unless said, {o.rounds} rounds in turn")
    console.print(f"jax {jax.__version__}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    console.print(f"GLIBC_TUNABLES={os.environ.get('GLIBC_TUNABLES', '(not set)')}")
    torch_sides = [(compiled, dtype) for dtype in o.dtypes for compiled in (False, True)] if o.torch else []
    for mode in o.modes:
        table = Table("", "side", "tokens/s (median)", "adaptlab's speed: median", "min-max", "FLOPs/token")
        step, flops = ours(shape, mode, batch)
        sides = {"adaptlab": step, "hand-written JAX": theirs(shape, mode, batch)}
        with ExitStack() as stack:
            for compiled, dtype in torch_sides:
                options = asdict(shape) | {"mode": mode, "rank": RANK, "alpha": ALPHA, "compile": compiled}
                options |= {"batch": o.batch, "length": o.length, "dtype": dtype}
                name = f"torch {'compiled' if compiled else 'eager'} {dtype}"
                sides[name] = torch_worker(o.torch, options, stack)
            seconds = compare(sides, o.rounds)
        for name, x in seconds.items():
            ratio = x / seconds["adaptlab"]
            spread = f"{ratio.min():.2f}-{ratio.max():.2f}"
            speed = f"{batch.tokens.size / np.median(x):.0f}"
            first = name == "adaptlab"
            table.add_row(
                mode, name, speed, f"{np.median(ratio):.2f}", "" if first else spread, f"{flops:.2f} N" if first else ""
            )
        console.print(table)


if __name__ == "__main__":
    main()
