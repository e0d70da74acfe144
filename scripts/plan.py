"""Does a job fit on a slice of TPUs, what limits it, how long does it take? Compiled for the slice, without having one.

    python -m scripts.plan model=llama3_8b adapt=lora mesh=auto mesh.fsdp=16 topology=v5e:4x4 batch_size=32 length=2048
    python -m scripts.plan model=llama3_8b adapt=full mesh.fsdp=64 topology=v5e:8x8 batch_size=128 length=2048
    python -m scripts.plan model=llama32_1b mesh.fsdp=8 topology=v5e:2x4 largest_batch=true
    python -m scripts.plan topology=v5e:4x4 slices=2 mesh.fsdp=16

The training step is the one that a study runs, compiled by the TPU's own compiler (the `tpu` extra: `pip install
"adaptlab[tpu]"`), or without it by the CPU's for simulated devices; the output says which figures are then estimates.
Writes `plan.json` and `plan_details.json`; docs/planner.md says what is in them. Leaves with 0 if the job fits, with 3
if it does not.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import adaptlab as al

DOES_NOT_FIT = 3


@dataclass
class Planning:
    """The keys of conf/plan.yaml.

    Attributes:
      model: one of conf/model.
      adapt: one of conf/adapt.
      optim: one of conf/optim.
      mesh: one of conf/mesh; -1 is what the other axes leave.
      topology: chip and shape of a slice.
      slices: how many of them.
      batch_size: rows of an update, over all chips.
      length: tokens of a row.
      accumulate: microbatches of an update.
      base_dtype: of the base's numbers.
      quantize: how the base is rounded, as in `base.quantize`.
      moments: where the optimiser's state rests.
      loss: the config of a loss, or null for the usual one.
      tokens: the budget.
      power: watts of one chip; null takes what is known of it.
      pue: power usage effectiveness of the data centre.
      grid: kilograms of CO2 equivalent per kilowatt hour.
      backend: whose compiler: tpu, cpu, or auto.
      suggest: whether to look for what makes a job fit.
      largest_batch: whether to search for it.
      max_compiles: of suggestions, and of the search.
    """

    model: dict[str, Any]
    adapt: dict[str, Any]
    optim: dict[str, Any]
    mesh: dict[str, Any]
    topology: str
    slices: al.config.Count
    batch_size: al.config.Count
    length: al.config.Count
    accumulate: al.config.Count
    base_dtype: Literal["float32", "bfloat16"]
    quantize: str | dict[str, Any] | None
    moments: Literal["zero1", "host"] | None
    loss: dict[str, Any] | None
    tokens: float
    power: float | None
    pue: float
    grid: float
    backend: Literal["auto", "cpu", "tpu"]
    suggest: bool
    largest_batch: bool
    max_compiles: int


def plan(asked: Planning, folder: Path) -> bool:
    """Plan, print and write; return whether the job fits.

    Raises:
      ValueError: a job that makes no sense, with what would.
    """
    from rich.console import Console

    from adaptlab.plan import Costs, Job, assess, choose_backend, largest_batch, make_compiler, print_plan, suggestions

    screen = Console(stderr=True)
    backend = choose_backend(asked.backend)
    job = Job(**{name: getattr(asked, name) for name in Job._fields})
    costs = Costs(asked.tokens, asked.power, asked.pue, asked.grid)
    with screen.status("…") as status:
        compiler = make_compiler(backend, said=status.update)

        def again(job: Job) -> Any:
            return assess(job, compiler, costs, backend)

        first = again(job)
        found, tried, most = [], [], None
        if not first.fits and asked.suggest:
            found, tried = suggestions(first, again, asked.max_compiles)
        if asked.largest_batch:
            most = largest_batch(first, again, asked.max_compiles)
    print_plan(first, Console(), found=found, tried=tried, largest=most)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in (
        ("plan.json", first.summary(found)),
        ("plan_details.json", first.details() | {"tried": tried, "largest_batch": most}),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    return first.fits


@al.config.main("plan", Planning)
def main(node: dict[str, Any], folder: Path) -> None:
    """Plan a job."""
    if not plan(Planning(**node), folder):
        sys.exit(DOES_NOT_FIT)


if __name__ == "__main__":
    main()
