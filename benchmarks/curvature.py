"""How fast, and how exact, is curvature? adaptlab against PyHessian, hessian-eigenthings and curvlinops.

    python -m benchmarks.curvature mlp|bert --torch PYTHON [--rounds 5] [--sides pyhessian …]

The Hessian of the mean cross-entropy over all weights, in float32: of a tanh network of 150,794 parameters on 256
points around ten centres, or of a BERT classifier of MiniLM's sizes (22.7 million parameters) on 8 x 32 tokens. All
sides have the same weights and batch and as many threads, and do each task in turns, so that a slow moment of the
machine hits all:

    product   one Hessian-vector product; what is kept for many products is made before the clock starts
    top       the largest eigenvalue, everything included: forward, backward, and as many products as it takes
    top five  the five largest
    density   stochastic Lanczos quadrature with the same number of probes and nodes

Time says nothing without accuracy. So the table has the relative error of each eigenvalue (the worst of five) from a
reference that adaptlab computes at a residual of 1e-5 and SciPy's eigsh over curvlinops confirms, and of the density,
the error of its largest node from the largest eigenvalue: a run that loses orthogonality overshoots. Every side runs at
the loosest setting of its own whose error is at most 1e-4, found before the clock starts: adaptlab's and SciPy's
tolerance, PyHessian's, and the number of steps of hessian-eigenthings, which has no stopping rule.

`--torch` names a Python with `torch transformers pyhessian hessian-eigenthings curvlinops-for-pytorch`, which is helped
on an AMD processor (`mkl.py`). Before its turn each side waits and is then called untimed for a moment: threads of the
side before still spin, and cores that have slept are slow. Two host
devices with the batch split over them: `XLA_FLAGS=--xla_force_host_platform_device_count=2`. Ratios are of the seconds
of one round, the other's over adaptlab's: above 1, adaptlab is faster. A call of another side that takes longer than
`--cap` is ended; its ratio is then a lower bound.

A program is compiled once a process. "first call" is that of a new process, on all sides, everything but imports and
the model's initialisation included: "new" where nothing was compiled before, "cached" where a process before it left
its programs (`adaptlab.runtime.configure`); the median of three processes, of "new" one. Its ratios are to the other
side's first call. Of products, it is one with the linearisation, which the others do not count.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from adaptlab import models, tree
from adaptlab.measure.curvature import Operator, apply, hessian, spectral_density, top_eigenpairs
from adaptlab.runtime import configure
from adaptlab.stats import Mean
from benchmarks.curvature_peers import OVER, Ask, capped, first_call, first_call_of

WIDTHS = (64, 256, 256, 256, 10)
BERT = models.BertShape(30522, width=384, depth=6, heads=12, ffn_width=1536, context=512)
DENSITY = {"mlp": {"probes": 2, "steps": 100}, "bert": {"probes": 2, "steps": 10}}
SIDES = ("pyhessian", "hessian-eigenthings", "curvlinops")
GOAL = 1e-4
PAUSE = 0.5  # seconds before each side's turn: the threads of the one before spin for a while when they are done
WAKE = 0.2  # seconds of calls that are not timed after it: cores that have slept are slow at first
TOLERANCES = [x * 10.0**-i for i in range(1, 7) for x in (1.0, 0.3)]
STEPS = [4, 6, 8, 10, 12, 16, 20, 24, 32, 48, 64, 96]


class Problem(NamedTuple):
    """A model's loss over its weights, and the batch."""

    objective: Callable[..., Mean]
    params: Any
    batch: dict[str, Any]


def problem(name: str) -> Problem:
    rng = np.random.default_rng(0)
    if name == "mlp":
        model, shape = models.mlp(WIDTHS), (256, 64)
        classes = WIDTHS[-1]
        targets = rng.integers(0, classes, shape[0], np.int32)
        inputs = (rng.normal(size=(classes, shape[1]))[targets] + rng.normal(size=shape)).astype(np.float32)
    else:
        model, classes = models.bert_classifier(BERT, classes=5), 5
        inputs = rng.integers(0, BERT.vocab_size, (8, 32), np.int32)
        targets = rng.integers(0, classes, len(inputs), np.int32)

    def objective(theta: Any, base: Any, batch: Any, key: Any) -> Mean:
        nats = models.cross_entropy(model.apply(theta, batch["inputs"]), batch["targets"])
        return Mean(jnp.sum(nats), jnp.float32(nats.size))

    params, batch = jax.jit(model.init)(jax.random.key(0)), {"inputs": inputs, "targets": targets}
    if jax.device_count() == 1:
        return Problem(objective, params, jax.device_put(batch))
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = lambda *axes: jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*axes))  # noqa: E731
    return Problem(objective, jax.device_put(params, sharding()), jax.device_put(batch, sharding("data")))


def ours(p: Problem) -> Ask:
    def ask(task: str, **settings: Any) -> tuple[float, Any]:
        def call() -> Any:
            h: Operator = hessian(p.objective, p.params, None, [p.batch])
            if task == "product":
                return jax.block_until_ready(_products(h, h.space))[1]
            if task == "apply":
                return jax.block_until_ready(apply(h, h.space))
            if task == "density":
                found = spectral_density(h, key=jax.random.key(0), how="rademacher", **settings)
                return found.nodes, found.weights
            k, tolerance = settings["k"], settings["tolerance"]
            return np.asarray(top_eigenpairs(h, k, key=jax.random.key(0), tolerance=tolerance).values)

        return timed(call)

    return ask


PRODUCTS = 10


@jax.jit
def _products(operator: Operator, v: Any) -> Any:
    """Products of one linearisation, each depending on the one before."""
    product = operator.linearise()
    step = lambda _, v: jax.tree.map(lambda x: 1e-3 * x + 1.0, product(v))  # noqa: E731
    return jax.lax.fori_loop(0, PRODUCTS, step, v), jnp.zeros(())


def timed(f: Callable[[], Any]) -> tuple[float, Any]:
    begun = time.perf_counter()
    found = f()
    return time.perf_counter() - begun, found


def write(name: str, p: Problem, folder: Path) -> dict[str, Any]:
    """Write weights and batch for the workers; return the options that say where they are."""
    host = jax.device_get(p.params)
    if name == "bert":
        models.save_hf(folder / "hf", BERT, host, BERT.context)
    np.savez(folder / "weights.npz", **tree.flatten(host))
    np.savez(folder / "batch.npz", **jax.device_get(p.batch))
    files = {"folder": str(folder / "hf"), "weights": str(folder / "weights.npz"), "batch": str(folder / "batch.npz")}
    return files | {"model": name, "parameters": tree.count(host), "threads": os.cpu_count()}


def error(found: Any, reference: np.ndarray) -> float:
    return float(np.max(np.abs(np.asarray(found) - reference) / np.abs(reference)))


def settings_of(side: str, ask: Ask, k: int, reference: np.ndarray) -> dict[str, Any]:
    """The loosest setting of a side that finds K eigenvalues to the goal, its tightest, or where it came to the cap."""
    if side == "hessian-eigenthings":
        tries = [{"k": k, "steps": steps, "tolerance": 0.0} for steps in STEPS if steps > k]
    else:
        tries = [{"k": k, "steps": 0, "tolerance": tolerance} for tolerance in TOLERANCES]
    for settings in tries:
        found = ask("top", **settings)[1]
        if found is OVER or error(found, reference) <= GOAL:
            return settings
    return tries[-1]


def references(p: Problem) -> dict[int, np.ndarray]:
    h = hessian(p.objective, p.params, None, [p.batch])
    found = top_eigenpairs(h, 5, key=jax.random.key(7), tolerance=1e-5)
    values = np.asarray(found.values, np.float64)
    return {1: values[:1], 5: values}


class Result(NamedTuple):
    """Of each side: seconds of each round, its error (None: over the cap) and settings."""

    seconds: dict[str, np.ndarray]
    errors: dict[str, float | None]
    settings: dict[str, dict[str, Any]]


def run(task: str, sides: dict[str, Ask], settings: dict[str, dict[str, Any]], rounds: int, judge: Any) -> Result:
    """Let all sides do a task in turns, but those that come to the cap the first time."""
    name = _name(task)
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    errors = {}
    for turn in range(rounds + 1):
        order = [side for side in sides if errors.get(side, 0) is not None]
        for side in order[turn % len(order) :] + order[: turn % len(order)]:
            time.sleep(PAUSE)
            begun = time.perf_counter()
            while turn > 0 and time.perf_counter() - begun < WAKE:
                sides[side](name, **settings[side])
            spent, found = sides[side](name, **settings[side])
            if turn == 0:
                errors[side] = None if found is OVER else judge(found)
            if turn > 0 or found is OVER:
                seconds[side].append(spent / (PRODUCTS if (task, side) == ("product", "adaptlab") else 1))
    return Result({side: np.array(x) for side, x in seconds.items()}, errors, settings)


def _name(task: str) -> str:
    return "top" if task.startswith("top") else task


def show(task: str, result: Result, firsts: tuple[float, float], theirs: dict[str, float]) -> Table:
    """The table of a task, with the first calls of adaptlab, new and cached, and of the others."""
    table = Table("side", "ms", "ratio (range)", "error", "first call, s", "ratio new / cached", "settings", title=task)
    mine = result.seconds["adaptlab"]
    for side, seconds in result.seconds.items():
        over = result.errors[side] is None
        ratio, least = (np.median(seconds) if over else seconds) / mine, "≥ " if over else ""
        spread, first = "1", f"new {firsts[0]:.2f}, cached {firsts[1]:.2f}"
        compared = "1"
        if side != "adaptlab":
            spread = f"{least}{np.median(ratio):.2f} ({ratio.min():.2f}-{ratio.max():.2f})"
            first = f"{least}{theirs[side]:.2f}"
            compared = " / ".join(f"{least}{theirs[side] / own:.2f}" for own in firsts)
        stated = ", ".join(f"{k}={v:g}" for k, v in result.settings[side].items() if v)
        known = result.errors[side]
        wrong = "" if known is None or np.isnan(known) else f"{known:.1e}"
        table.add_row(side, f"{least}{1000 * np.median(seconds):.1f}", spread, wrong, first, compared, stated)
    return table


def measured(
    task: str, sides: dict[str, Ask], known: dict[int, np.ndarray], o: Any, options: dict[str, Any], cache: Path
) -> Table:
    """The table of a task."""
    settings, judge = {side: {} for side in sides}, lambda found: np.nan
    if task.startswith("top"):
        k = 5 if task == "top five" else 1
        settings = {side: settings_of(side, ask, k, known[k]) for side, ask in sides.items()}
        judge = lambda found: error(found, known[k])  # noqa: E731
    elif task == "density":
        settings = dict.fromkeys(sides, DENSITY[o.model])
        judge = lambda found: error(np.max(found[0]), known[1])  # noqa: E731
    result, name = run(task, sides, settings, o.rounds, judge), _name(task)
    firsts = first_call(o.model, name, settings["adaptlab"], cache / task.replace(" ", "_"))
    theirs = {
        side: o.cap if wrong is None else first_call_of(o.torch, side, options, o.cap, name, settings[side])
        for side, wrong in result.errors.items()
        if side != "adaptlab"
    }
    return show(task, result, firsts, theirs)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("model", choices=["mlp", "bert"])
    parser.add_argument("--torch", help="a Python with torch and the peers")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--cap", type=float, default=300, help="seconds, of one call of another side")
    parser.add_argument("--sides", nargs="*", default=list(SIDES), choices=SIDES)
    parser.add_argument("--tasks", nargs="*", default=["product", "top", "top five", "density"])
    parser.add_argument("--first", type=json.loads, help="[task, settings]: print the seconds of one call, and end")
    o = parser.parse_args(argv)
    p = problem(o.model)
    if o.first:
        import scipy.linalg  # noqa: F401  # which JAX imports for the first eigh

        configure()
        jax.block_until_ready((p.params, p.batch))
        task, settings = o.first
        print(ours(p)("apply" if task == "product" else task, **settings)[0])
        return
    known = references(p) if o.tasks != ["product"] else {1: np.zeros(0), 5: np.zeros(0)}
    console = Console(width=140)
    console.print(f"{o.model}: {tree.count(p.params):,} parameters; the five largest eigenvalues: {known[5]}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        options = write(o.model, p, folder)
        sides = {"adaptlab": ours(p)}
        sides |= {side: capped(o.torch, side, options, o.cap, stack) for side in (o.sides if o.torch else ())}
        for task in o.tasks:
            console.print(measured(task, sides, known, o, options, folder))
    console.print(
        f"{platform.machine()}, {os.cpu_count()} cores, {jax.device_count()} host devices, jax {jax.__version__}; "
        f"GLIBC_TUNABLES={os.environ.get('GLIBC_TUNABLES', '')!r}"
    )


if __name__ == "__main__":
    main()
