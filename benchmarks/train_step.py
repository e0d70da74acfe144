"""How fast is a training step? adaptlab against a hand-written JAX step, torch + PEFT, Flax + Qwix, and Levanter.

    python -m benchmarks.train_step bert|bert_mean|gpt2|llama|smollm2 [--torch PYTHON] [--qwix PYTHON]
        [--levanter PYTHON] [--rounds 7]

The families: a BERT classifier of MiniLM's sizes (LoRA on query and value), a GPT-2 and a Llama of the same width and
depth, and a Llama of SmolLM2's sizes (LoRA on every matrix of the layers; GPT-2's query, key and value are one matrix
in transformers, and three with an adapter each in adaptlab). A classifier of the first token does not read the other
tokens of the last layer, and adaptlab does not compute them; `bert_mean` pools by the mean of all tokens, so that all
sides do the same arithmetic (it has no counterpart in transformers).

All sides start from the same random weights, train on the
same batch in float32 with AdamW and clipping at global norm 1, and step in turns, so that a slow moment of the machine
hits all. Ratios are of the seconds of paired steps, the other's over adaptlab's: above 1, adaptlab is faster. The first
loss of all sides is the same (they compute the same function), and so is the second of full fine-tuning (they take the
same step); LoRA's differs with the random A.

`--torch` names a Python with the packages of the `reference` extra; there, eager and compiled, all with fused AdamW.
`--qwix` names one with `qwix` and `flax` (`pip install jax==0.10.2 qwix flax optax`), `--levanter` one with what
`levanter_step.py` says (LoRA of Llama and GPT-2). All run under the same allocator settings (`GLIBC_TUNABLES`), which
the table states. FLOPs are those of the step's matrix products per token, in units of the number N of the base's
parameters.
"""

import argparse
import json
import os
import platform
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.table import Table

from adaptlab import adapt, models, optim, train, tree
from adaptlab.data import Batch, LabelledBatch
from benchmarks import handwritten
from benchmarks.mkl import rivals_environment

RANK, ALPHA, LR, CLASSES = 8, 16.0, 1e-4, 5
WIDTH: dict[str, Any] = {"width": 384, "depth": 6, "ffn_width": 1536}
Stepper = Callable[[], tuple[float, float]]
"""Takes a step; returns its seconds and its loss."""

ATTENTION = ["attention/query", "attention/key", "attention/value", "attention/out"]
EVERY = [*ATTENTION, "feed_forward/up", "feed_forward/down"]


@dataclass(frozen=True)
class Family:
    """What is trained: its kind, its sizes, the matrices that LoRA adapts, and what PEFT calls them."""

    model: str
    shape: Any
    lora: list[str]
    peft: list[str] | str
    batch: tuple[int, int] = (8, 128)
    pooling: Any = "cls"

    def make(self) -> tuple[models.Model, Any]:
        """The model and its loss."""
        if self.model == "bert":
            model = models.bert_classifier(self.shape, classes=CLASSES, pooling=self.pooling)
            return model, models.classification(model)
        model = models.llama(self.shape) if self.model == "llama" else models.gpt2(self.shape)
        return model, models.language_modelling(model)


BERT = models.BertShape(30522, heads=12, context=512, **WIDTH)
FAMILIES = {
    "bert": Family(
        "bert",
        BERT,
        ["attention/query", "attention/value"],
        ["query", "value"],
    ),
    "bert_mean": Family("bert", BERT, ["attention/query", "attention/value"], [], pooling="mean"),
    "gpt2": Family(
        "gpt2", models.GPT2Shape(50257, heads=6, context=1024, **WIDTH), EVERY, ["c_attn", "c_proj", "c_fc"]
    ),
    "llama": Family(
        "llama",
        models.LlamaShape(32000, width=384, depth=6, heads=6, kv_heads=6, head_width=64, ffn_width=1024),
        [*EVERY, "feed_forward/gate"],
        "all-linear",
    ),
    "smollm2": Family(
        "llama",
        models.LlamaShape(49152, width=576, depth=30, heads=9, kv_heads=3, head_width=64, ffn_width=1536),
        [*EVERY, "feed_forward/gate"],
        "all-linear",
        (4, 128),
    ),
}


def timed(step: Callable[[], Any]) -> tuple[float, float]:
    begun = time.perf_counter()
    value = jax.block_until_ready(step())
    return time.perf_counter() - begun, float(value)


def ours(family: Family, lora: bool, base: Any, batch: Any) -> tuple[Stepper, float]:
    """adaptlab's step, as a study compiles it, and its FLOPs per token over N."""
    _, loss = family.make()
    select = [f"layers/{name}/kernel" for name in family.lora]
    method = adapt.lora(RANK, alpha=ALPHA, select=select) if lora else adapt.full()
    program = train.make_program(
        lambda numbers: loss,
        lambda numbers: method,
        lambda numbers: optim.adamw(numbers["lr"], total_steps=1000, clip=1.0),
    )
    numbers, seed = train.device_numbers({"lr": LR}, 0, base)
    compiled = train.compile_program(program, numbers, seed, base, batch)
    state = compiled.program.init(numbers, seed, base, None)

    def step() -> Any:
        nonlocal state
        state, metrics = jax.block_until_ready(compiled.program.step(numbers, seed, state, base, batch))
        return metrics["loss"]

    return lambda: timed(step), compiled.flops / batch.tokens.size / tree.count(base)


def by_hand(family: Family, lora: bool, base: Any, batch: Any) -> Stepper:
    """The hand-written step."""
    names = family.lora
    trained = (
        handwritten.init_lora(jax.random.key(1), base["layers"], names, RANK) if lora else jax.tree.map(jnp.copy, base)
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(LR, weight_decay=0.0))
    opt_state = optimizer.init(trained)
    run = handwritten.make_step(family.model, family.shape, optimizer, lora, ALPHA / RANK)
    frozen = base if lora else None

    def step() -> Any:
        nonlocal trained, opt_state
        done = run(trained, opt_state, frozen, batch.tokens, batch.targets, batch.weights)
        trained, opt_state, value = jax.block_until_ready(done)
        return value

    return lambda: timed(step)


def worker(python: str, script: str, options: dict[str, Any], stack: ExitStack) -> Stepper:
    """A process of its own that steps when it is told to, and ends with the stack."""
    path = str(Path(__file__).with_name(script))
    process = subprocess.Popen(
        [python, path, json.dumps(options)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=rivals_environment(),
    )
    stack.callback(process.kill)
    assert process.stdin is not None
    assert process.stdout is not None
    stdin, stdout = process.stdin, process.stdout
    if not stdout.readline().startswith("ready"):
        raise SystemExit(f"{python} {path} did not start: has it the packages that the file imports?")

    def step() -> tuple[float, float]:
        stdin.write("step\n")
        stdin.flush()
        line = stdout.readline().split()
        if len(line) != 2:
            raise SystemExit(f"{python} {path} stopped; its own message is above.")
        return float(line[0]), float(line[1])

    return step


def write(family: Family, base: Any, batch: Any, folder: Path) -> dict[str, Any]:
    """Write weights and batch for the workers; return the options that say where they are."""
    host, context = jax.device_get(base), getattr(family.shape, "context", 2048)
    models.save_hf(folder / "hf", family.shape, host, context)
    np.savez(folder / "weights.npz", **tree.flatten(host))
    np.savez(folder / "batch.npz", **jax.device_get(batch)._asdict())
    files = {"folder": str(folder / "hf"), "weights": str(folder / "weights.npz"), "batch": str(folder / "batch.npz")}
    sizes = asdict(family.shape) | {"classes": CLASSES, "pooling": family.pooling}
    return files | {"model": family.model, "shape": sizes, "rank": RANK, "alpha": ALPHA, "lr": LR}


def others(family: Family, lora: bool, options: dict[str, Any], o: Any, stack: ExitStack) -> dict[str, Stepper]:
    """The sides that have a Python of their own."""
    sides = {}
    for dtype in o.dtypes if o.torch else ():
        for compiled in (False, True):
            more = {"lora": family.peft if lora else None, "compile": compiled, "dtype": dtype}
            name = f"torch {'compiled' if compiled else 'eager'} {dtype}"
            sides[name] = worker(o.torch, "torch_step.py", options | more, stack)
    if o.qwix:
        matrices = "|".join(family.lora)
        more = {"lora": rf"layer_\d+/({matrices})" if lora else None}
        name = "Flax + Qwix" if lora else "Flax"
        sides[name] = worker(o.qwix, "qwix_step.py", options | more, stack)
    if o.levanter and lora and family.model in ("gpt2", "llama"):  # it has no encoder
        sides["Levanter"] = worker(o.levanter, "levanter_step.py", options, stack)
    return sides


def compare(sides: dict[str, Stepper], rounds: int) -> tuple[dict[str, np.ndarray], dict[str, list[float]]]:
    """Step all sides in turn; the first round compiles. Returns the seconds of steps, and the first two losses.

    Whose turn comes after whose matters: the other's threads and memory are still about. So a turn is two steps, of
    which the second counts, and every round begins with another side.
    """
    names = list(sides)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    losses: dict[str, list[float]] = {}
    for turn in range(rounds + 1):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            (_, before), (second, after) = sides[name](), sides[name]()
            seconds[name].append(second)
            losses.setdefault(name, [before, after])
    return {name: np.array(x[1:]) for name, x in seconds.items()}, losses


def random_batch(family: Family, rows: int, length: int) -> Any:
    """Whole rows of random tokens, to predict the next of each or one of the classes."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, family.shape.vocab_size, (rows, length), np.int32)
    ones = np.ones_like(tokens)
    if family.model == "bert":
        targets = rng.integers(0, CLASSES, rows, np.int32)
        return jax.device_put(LabelledBatch(tokens, targets, ones, np.ones(rows, np.float32)))
    positions = np.broadcast_to(np.arange(length, dtype=np.int32), tokens.shape)
    weights = ones.astype(np.float32)
    weights[:, -1] = 0  # nothing follows
    return jax.device_put(Batch(tokens, np.roll(tokens, -1, axis=1), ones, positions, weights))


def rows_of(
    mode: str, seconds: dict[str, np.ndarray], losses: dict[str, list[float]], tokens: int, flops: float
) -> Any:
    for name, x in seconds.items():
        ratio, first = x / seconds["adaptlab"], name == "adaptlab"
        spread = "" if first else f"{ratio.min():.2f}-{ratio.max():.2f}"
        speed, cost = f"{tokens / np.median(x):.0f}", f"{flops:.2f} N" if first else ""
        yield mode, name, speed, f"{np.median(ratio):.2f}", spread, cost, ", ".join(f"{x:.5f}" for x in losses[name])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--rounds", type=int, default=7)
    for name in ("depth", "batch", "length"):
        parser.add_argument(f"--{name}", type=int, help="the family's, unless said")
    parser.add_argument("--torch", metavar="PYTHON")
    parser.add_argument("--qwix", metavar="PYTHON")
    parser.add_argument("--levanter", metavar="PYTHON")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"], help="of the torch sides")
    parser.add_argument("--modes", nargs="+", default=["full", "lora"])
    o = parser.parse_args()
    family = FAMILIES[o.family]
    if o.torch and family.pooling == "mean":
        parser.error("bert_mean has no counterpart in transformers; leave --torch out.")
    family = replace(family, shape=replace(family.shape, depth=o.depth or family.shape.depth))
    rows, length = o.batch or family.batch[0], o.length or family.batch[1]
    batch = random_batch(family, rows, length)
    base = jax.jit(family.make()[0].init)(jax.random.key(0))
    console = Console(width=max(120, Console().width))
    console.print(f"{family.shape}\nbatch {rows} x {length} tokens, float32 unless said, {o.rounds} rounds in turn")
    console.print(f"jax {jax.__version__}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    console.print(f"GLIBC_TUNABLES={os.environ.get('GLIBC_TUNABLES', '(not set)')}")
    with tempfile.TemporaryDirectory(prefix="adaptlab-step-") as home:
        options = write(family, base, batch, Path(home))
        for mode in o.modes:
            lora = mode == "lora"
            table = Table(
                "", "side", "tokens/s (median)", "adaptlab's speed: median", "min-max", "FLOPs/token", "losses"
            )
            step, flops = ours(family, lora, base, batch)
            with ExitStack() as stack:
                sides = {"adaptlab": step, "hand-written JAX": by_hand(family, lora, base, batch)}
                sides |= others(family, lora, options, o, stack)
                seconds, losses = compare(sides, o.rounds)
            for row in rows_of(mode, seconds, losses, rows * length, flops):
                table.add_row(*row)
            console.print(table)


if __name__ == "__main__":
    main()
