"""How long until the first update? A first start compiles; a second one reads what the first compiled.

    python -m benchmarks.startup [--repeats 3] [overrides of experiments.forgetting]

Runs a study of one update per method in fresh processes, in turn with an empty and with the filled compilation cache,
and prints for each method the seconds from having the weights to the end of the first update (tracing, compiling or
reading, the update), and the wall time of the whole process, with its loading, measuring and reporting. Weights and
text are on disk in both cases.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table


def start(cache: Path, folder: Path, overrides: list[str]) -> tuple[float, dict[str, float]]:
    """Run one process; return its wall time, and per method the seconds to get and run the first update."""
    command = [sys.executable, "-m", "experiments.forgetting", f"hydra.run.dir={folder}", "wandb.mode=disabled"]
    begun = time.perf_counter()
    subprocess.run(
        [*command, "training.duration.steps=1", *overrides],
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache)},
        check=True,
        stdout=subprocess.DEVNULL,
    )
    wall = time.perf_counter() - begun
    results = [json.loads(p.read_text()) for p in sorted(folder.glob("runs/*/*/*/result.json"))]
    return wall, {r["method"]: r["compile_seconds"] + r["first_step_seconds"] for r in results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    options, overrides = parser.parse_known_args()
    rows = []
    with tempfile.TemporaryDirectory() as home:
        for i in range(options.repeats):
            cache = Path(home, f"cache{i}")
            rows.append([start(cache, Path(home, f"{i}-{kind}"), overrides) for kind in ("first", "second")])
    table = Table("", "first start (s)", "second start (s)", "ratio: median (min-max)")
    for method in rows[0][0][1]:
        add(table, f"{method}: compile and first update", [(a[1][method], b[1][method]) for a, b in rows])
    add(table, "whole study of one update each", [(a[0], b[0]) for a, b in rows])
    Console().print(table)


def add(table: Table, label: str, pairs: list[tuple[float, float]]) -> None:
    first, second = (sorted(x)[len(x) // 2] for x in zip(*pairs, strict=True))
    ratios = sorted(a / b for a, b in pairs)
    spread = f"{ratios[len(ratios) // 2]:.2f} ({ratios[0]:.2f}-{ratios[-1]:.2f})"
    table.add_row(label, f"{first:.1f}", f"{second:.1f}", spread)


if __name__ == "__main__":
    main()
