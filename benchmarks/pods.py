"""Jobs for pods, each compiled for its pod by the TPU's own compiler: the table of docs/planner.md.

    python benchmarks/pods.py                       # all of them: minutes each, on one core
    python benchmarks/pods.py 8b_lora 70b_full      # some; the others keep the rows they have
    python benchmarks/pods.py --table               # only writes the table again

Needs the `tpu` extra. What was found is kept in docs/pods.json.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

from adaptlab import config
from adaptlab.plan import Costs, Job, assess, make_compiler, suggestions

ROOT = Path(__file__).parents[1]
KEPT, PAGE = ROOT / "docs" / "pods.json", ROOT / "docs" / "planner.md"
BEGIN, END = "<!-- pods: python benchmarks/pods.py -->", "<!-- /pods -->"
COSTS = Costs(tokens=1e9, power=None, pue=1.09, grid=0.473)

FULL, LORA = ["adapt=full", "base_dtype=float32"], ["adapt=lora", "base_dtype=bfloat16"]
PODS: dict[str, list[str]] = {
    "8b_lora": ["model=llama3_8b", *LORA, "topology=v5e:4x4", "mesh.fsdp=16", "batch_size=16", "length=4096"],
    "8b_full": ["model=llama3_8b", *FULL, "topology=v5e:8x8", "mesh.fsdp=64", "batch_size=64", "length=4096"],
    "70b_qlora": [
        *("model=llama3_70b", *LORA, "quantize=nf4", "topology=v5e:8x8", "mesh.fsdp=64"),
        *("batch_size=64", "length=4096"),
    ],
    "70b_full": ["model=llama3_70b", *FULL, "topology=v5p:4x8x8", "mesh.fsdp=256", "batch_size=256", "length=4096"],
    "mixtral_lora": [
        *("model=mixtral_8x7b", *LORA, "topology=v5e:8x8", "mesh.fsdp=8", "mesh.expert=8"),
        *("batch_size=64", "length=4096"),
    ],
    "8b_lora_128k": [
        *("model=llama3_8b", *LORA, "topology=v5e:8x8", "mesh.fsdp=4", "mesh.context=16"),
        *("batch_size=4", "length=131072"),
    ],
    "8b_full_too_small": ["model=llama3_8b", *FULL, "topology=v5e:2x2", "mesh.fsdp=4", "batch_size=4", "length=4096"],
    "8b_full_2_slices": [
        *("model=llama3_8b", *FULL, "topology=v5e:8x8", "slices=2", "mesh.fsdp=64"),
        *("batch_size=128", "length=4096"),
    ],
    "8b_lora_v4": ["model=llama3_8b", *LORA, "topology=v4:2x2x4", "mesh.fsdp=16", "batch_size=16", "length=4096"],
    "8b_full_v6e": ["model=llama3_8b", *FULL, "topology=v6e:8x8", "mesh.fsdp=64", "batch_size=64", "length=4096"],
}


def job_of(overrides: list[str]) -> Job:
    node = config.compose("plan", overrides)
    return Job(**{name: config.validate(node[name], name) for name in Job._fields})


def planned(name: str) -> dict[str, Any]:
    start = time.perf_counter()
    compiler = make_compiler("tpu", said=lambda text: print(f"{name}: {text}", flush=True))
    plan = assess(job_of(PODS[name]), compiler, COSTS, "tpu")
    found: list[Any] = []
    if not plan.fits:
        found, _ = suggestions(plan, lambda job: assess(job, compiler, COSTS, "tpu"), 4)
    details = plan.details()
    del details["largest_buffers"][3:]
    taken = time.perf_counter() - start
    return {"overrides": PODS[name], "seconds": taken, **plan.summary(found), "details": details}


def table(kept: dict[str, Any]) -> str:
    names = ("job", "chips", "fits", "GiB a chip", "step, s (without overlap)", "MFU", "limited by")
    rows = [f"| {' | '.join(names)} | compute / memory / ICI / DCN, s |", "|---|---|---|---|---|---|---|---|"]
    for name in [name for name in PODS if name in kept]:
        one, times = kept[name], kept[name]["details"]["times"]
        gib = sum(one["memory_per_chip"].values()) / 2**30
        parts = " / ".join(f"{t:.2f}" for t in times.values()) if times else ""
        step = f"{one['step_time']:.2f} ({one['details']['step_time_without_overlap']:.2f})" if times else ""
        mfu = f"{100 * one['mfu']:.0f}%" if times and one["fits"] else ""
        verdict = "yes" if one["fits"] else "**refused**"
        chips = f"{one['details']['chips']} {one['details']['chip']['name']}"
        room = f"{gib:.2f} of {one['hbm'] / 2**30:.2f}"
        rows.append(f"| `{name}` | {chips} | {verdict} | {room} | {step} | {mfu} | {one['limit']} | {parts} |")
    commands = [f"- `{name}`: `{' '.join(PODS[name])}`" for name in PODS if name in kept]
    return "\n".join([*rows, "", "Each is `python -m scripts.plan` and", "", *commands])


def write_table(kept: dict[str, Any]) -> None:
    page = PAGE.read_text()
    before, rest = page.split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table(kept)}\n\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {sorted(PODS)}")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    if unknown := set(given.names) - set(PODS):
        parser.error(f"there is no {sorted(unknown)}; choose from {sorted(PODS)}")
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    for name in [] if given.table else given.names or PODS:
        try:
            kept[name] = planned(name)
        except ValueError as error:
            print(f"{name}: {error}", flush=True)
            continue
        KEPT.write_text(json.dumps(kept, indent=1) + "\n")
        print(f"{name}: fits {kept[name]['fits']}, MFU {kept[name]['mfu']}, {kept[name]['seconds']:.0f} s", flush=True)
    write_table(kept)


if __name__ == "__main__":
    main()
