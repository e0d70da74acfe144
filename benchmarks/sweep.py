"""How long does a sweep take? One program for all runs, against Hydra's basic launcher, against a plain torch loop.

    python -m benchmarks.sweep [--runs 32] [--adapt full] [--rounds 1] [--torch PYTHON] [overrides of the study]

The sweep is `experiments.lr_schedule -m optim.lr=1e-4,3e-4,1e-3,3e-3 seed=range(8)` (or a part of it) on `base=small`,
from the shell to the last file:

    vmap    with hydra/launcher=vmap: all runs in one program
    basic   with Hydra's basic launcher: one job after the other, in one process
    torch   `torch_sweep.py`: the same runs in a plain loop, eager and compiled, in one process

All sides train and measure the same batches in the same order, in float32. For torch they are tokenised, packed and
written to a file beforehand, which is not timed, nor does it save, checkpoint or report anything but its curves:
adaptlab's sides do all of that within their time. Sides take turns, and each round begins with another. Compiled
programs are in their caches (a run of each side that is not timed sees to that), or with `--cold` each side compiles
anew into an empty one. On an AMD processor torch is helped (`mkl.py`). A ratio is the side's wall time over that of
`vmap` in the same round: above 1, `vmap` is faster. CPU seconds are those of all threads and of all processes that a
side starts. At the end the last target losses of all runs are compared, run by run.
"""

import argparse
import ctypes
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.console import Console
from rich.table import Table

from adaptlab import config, data, tree
from adaptlab.models import LlamaShape
from adaptlab.models.llama_family import LLAMA
from adaptlab.rng import key_for
from adaptlab.study.lab import open_lab
from benchmarks.mkl import rivals_environment
from experiments.lr_schedule import Study

RATES = (1e-4, 3e-4, 1e-3, 3e-3)
ROOT = Path(__file__).parents[1]
_SET_CHILD_SUBREAPER = 36  # prctl(2): what its children leave behind becomes a process's own child
TUNABLES = "glibc.malloc." + ":glibc.malloc.".join(
    ("hugetlb=1", "mmap_max=0", "trim_threshold=17179869184", "top_pad=67108864", "arena_max=1")
)
"""Of all sides: huge pages, and what is freed stays with the process: temporaries are not new pages each time."""


class Timing(NamedTuple):
    """One go of a side: seconds of the wall and of the CPU, and the last target loss of each run, by rate and seed."""

    wall: float
    cpu: float
    losses: dict[tuple[float, int], float]


Side = Callable[[int, Path, Path], Timing]
"""`(runs, folder, folder of compiled programs) -> Timing`."""


def grid(runs: int) -> list[tuple[float, int]]:
    """The rates and seeds of so many runs: all rates and fewer seeds, or a single run."""
    if runs == 1:
        return [(RATES[0], 0)]
    if runs % len(RATES):
        raise SystemExit(f"--runs {runs} is not a multiple of the {len(RATES)} learning rates.")
    return [(lr, seed) for lr in RATES for seed in range(runs // len(RATES))]


def timed(command: list[str], environment: dict[str, str], log: Path) -> tuple[float, float]:
    """Run a command; return its wall seconds, and the CPU seconds of all processes that it started."""

    def cpu() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    ctypes.CDLL(None, use_errno=True).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    before, begun = cpu(), time.perf_counter()
    with log.open("w") as file:
        code = subprocess.run(command, env=os.environ | environment, stdout=file, stderr=file, cwd=ROOT).returncode
    wall = time.perf_counter() - begun
    with suppress(ChildProcessError):
        while os.wait():  # processes that outlived the command are now this one's, and count once they were waited for
            pass
    if code:
        raise SystemExit(f"{' '.join(command)} failed:\n{log.read_text()[-4000:]}")
    return wall, cpu() - before


def ours(launcher: list[str], overrides: list[str]) -> Side:
    """The sweep as a user starts it."""

    def run(runs: int, folder: Path, cache: Path) -> Timing:
        pairs = grid(runs)
        rates, seeds = (",".join(f"{x:g}" for x in dict.fromkeys(column)) for column in zip(*pairs, strict=True))
        command = [sys.executable, "-m", "experiments.lr_schedule", "-m", f"optim.lr={rates}", f"seed={seeds}"]
        command += [*launcher, f"hydra.sweep.dir={folder}", *overrides]
        environment = {"JAX_COMPILATION_CACHE_DIR": str(cache / "xla"), "GLIBC_TUNABLES": TUNABLES}
        seconds = timed(command, environment, folder.with_suffix(".log"))
        results = [json.loads(p.read_text()) for p in folder.glob("*/runs/*/*/*/result.json")]
        return Timing(*seconds, {(r["lr"], r["seed"]): r["target_loss"] for r in results})

    return run


def torch_loop(python: str, options: dict[str, Any]) -> Side:
    """The sweep as a plain script."""

    def run(runs: int, folder: Path, cache: Path) -> Timing:
        folder.mkdir()
        out = folder / "results.json"
        command = [python, str(ROOT / "benchmarks" / "torch_sweep.py")]
        command += [json.dumps(options | {"runs": grid(runs), "out": str(out)})]
        environment = rivals_environment() | {
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
            "GLIBC_TUNABLES": TUNABLES,
        }
        seconds = timed(command, environment, folder.with_suffix(".log"))
        results = json.loads(out.read_text())["results"]
        return Timing(*seconds, {(r["lr"], r["seed"]): r["target_loss"] for r in results})

    return run


def export(overrides: list[str], seeds: int, path: Path) -> dict[str, Any]:
    """Write the batches of the sweep, and what LoRA starts from, for torch; return the options of `torch_sweep.py`."""
    chosen = Study(**config.validate(config.compose("lr_schedule", [*overrides, "seed=0"]), schema=Study))
    lab = open_lab(chosen)
    arrays: dict[str, np.ndarray] = {}

    def put(prefix: str, batches: list[data.Batch]) -> None:
        arrays.update({f"{prefix}/{n}": np.stack([getattr(b, n) for b in batches]) for n in data.Batch._fields})

    for name, batches in lab.held_out.items():
        put(f"held_out/{name}", batches)
    adapt = {key: value for key, value in chosen.adapt.items() if key != "_target_"}
    for seed in range(seeds):
        put(f"train/{seed}", [lab.batches(seed)(step) for step in range(lab.total_steps)])
        if adapt:
            delta = config.instantiate(chosen.adapt).init(key_for(seed, "init"), lab.params)
            arrays |= {f"lora_a/{seed}/{name}": a for name, a in _peft_names(tree.flatten(delta)).items()}
    np.savez(path, **arrays)  # pyright: ignore[reportArgumentType]
    return {
        "model": str(config.instantiate(chosen.base["weights"]).fetch()),
        "data": str(path),
        "domains": list(lab.held_out),
        "steps": lab.total_steps,
        "measure_every": lab.training.measure_every,
        "clip": chosen.optim["clip"],
        "warmup": chosen.optim["schedule"]["warmup"],
        "adapt": "lora" if adapt else "full",
        "rank": adapt.get("rank"),
        "alpha": adapt.get("alpha"),
    }


def _peft_names(delta: dict[str, Any]) -> dict[str, np.ndarray]:
    """The A of every adapted matrix, by the name of PEFT's parameter."""
    found = {}
    for entry in LLAMA.entries(LlamaShape(1, 1, 1, 1, 1, 2, 1)):  # names of tensors do not depend on sizes
        for layer, a in enumerate(np.asarray(delta.get(f"{entry.path}/a", ()))):
            module = entry.hf.format(layer).removesuffix(".weight")
            found[f"base_model.model.{module}.lora_A.default.weight"] = a.T.copy()
    return found


def warm_up(sides: dict[str, Side], runs: int, folder: Path, cache: Path) -> None:
    """Fill the caches of compiled programs: `vmap`'s depends on how many runs there are."""
    for number, (name, side) in enumerate(sides.items()):
        timing = side(runs if name == "vmap" else 1, folder / f"warm-up-{number}", cache)
        print(f"warm-up, {name}: {timing.wall:.0f} s", file=sys.stderr, flush=True)


def compare(sides: dict[str, Side], runs: int, rounds: int, folder: Path, cold: bool) -> dict[str, list[Timing]]:
    """Let all sides sweep in turn; every round begins with another one."""
    names, timings = list(sides), {name: [] for name in sides}
    if not cold:
        warm_up(sides, runs, folder, folder / "cache")
    for turn in range(rounds):
        first = turn % len(names)
        for number, name in enumerate(names[first:] + names[:first]):
            place = folder / f"{turn}-{number}"
            timings[name].append(sides[name](runs, place, folder / f"{place.name}-cache" if cold else folder / "cache"))
            print(f"round {turn + 1}, {name}: {timings[name][-1].wall:.0f} s", file=sys.stderr, flush=True)
    return timings


def table_of(timings: dict[str, list[Timing]], runs: int) -> Table:
    table = Table("side", "wall (s)", "CPU (s)", "wall per run (s)", "wall over vmap's: median (min-max)")
    for name, goes in timings.items():
        wall, cpu = (statistics.median(column) for column in list(zip(*goes, strict=True))[:2])
        pairs = zip(goes, timings.get("vmap", goes), strict=True)
        ratios = sorted(mine.wall / first.wall for mine, first in pairs)
        spread = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
        table.add_row(name, f"{wall:.1f}", f"{cpu:.1f}", f"{wall / runs:.2f}", spread)
    return table


def differences(timings: dict[str, list[Timing]]) -> list[str]:
    """The largest difference of a run's last target loss between the first side and each other."""
    (first, goes), *others = timings.items()
    lines = []
    for name, those in others:
        gaps = {run: abs(loss - those[0].losses[run]) for run, loss in goes[0].losses.items()}
        (lr, seed), gap = max(gaps.items(), key=lambda item: item[1])
        at = f"at lr {lr:g}, seed {seed}: {goes[0].losses[lr, seed]:.4f} and {those[0].losses[lr, seed]:.4f}"
        lines.append(f"last target losses of {len(gaps)} runs, {first} and {name}: differ by at most {gap:.1e}, {at}")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=32, help="a multiple of 4")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--adapt", choices=["full", "lora"], default="full")
    parser.add_argument("--base", default="small", help="see conf/base")
    parser.add_argument("--torch", metavar="PYTHON", help="a Python with the packages of the reference extra")
    parser.add_argument("--sides", nargs="+", help="only these: vmap, basic, torch eager, torch compiled")
    parser.add_argument("--cold", action="store_true", help="compile anew into empty caches")
    parser.add_argument("--wandb", default="disabled", help="wandb.mode of adaptlab's sides; torch has none")
    o, given = parser.parse_known_args()
    recipe = [f"base={o.base}", f"adapt={o.adapt}", *given]
    overrides = [*recipe, f"wandb.mode={o.wandb}"]
    sides = {"vmap": ours(["hydra/launcher=vmap"], overrides), "basic": ours([], overrides)}
    with tempfile.TemporaryDirectory(prefix="adaptlab-sweep-") as home:
        folder = Path(home)
        if o.torch:
            options = export(recipe, max(1, o.runs // len(RATES)), folder / "batches.npz")
            for kind in ("eager", "compiled"):
                sides[f"torch {kind}"] = torch_loop(o.torch, options | {"compile": kind == "compiled"})
        sides = {name: side for name, side in sides.items() if not o.sides or name in o.sides}
        timings = compare(sides, o.runs, o.rounds, folder, o.cold)
    console = Console(soft_wrap=True)
    console.print(f"{o.runs} runs, {' '.join(overrides)}, float32; {o.rounds} rounds in turn")
    console.print(f"compiled programs: {'none cached' if o.cold else 'cached'}; GLIBC_TUNABLES={TUNABLES}")
    console.print(f"jax {jax.__version__}, {platform.processor() or platform.machine()}, {os.cpu_count()} cores")
    console.print(table_of(timings, o.runs))
    for line in differences(timings):
        console.print(line)


if __name__ == "__main__":
    main()
