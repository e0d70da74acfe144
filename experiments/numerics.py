"""How much of a result is numerics: does the same adaptation on another mesh, or in another precision, end elsewhere?

One adaptation is run again on other mesh shapes, with its devices in another order, in other precisions, and from
LoRA's other initialisation, with the seeds and the batches of a reference on one device. What is reported is how far
curves and updates part from the reference's, how fast, and how that compares with what another seed does:

    d(s) = ‖ΔW(s) - ΔW_ref(s)‖_F / ‖ΔW_ref(s)‖_F

Floating-point sums depend on their order, so another mesh parts at the last bit, and training amplifies that. The arms
`bfloat16` and `a_zero` show what is no rounding: another arithmetic, and another method. What was expected of the arms
stands in conf/numerics.yaml and is judged.

    python -m experiments.pretrain                                  first: the small base
    python -m experiments.numerics                                  on a CPU, its cores stand for eight devices
    python -m experiments.numerics 'seeds=[0,1]' '~arms.bfloat16' +arms.context.mesh.context=2

It needs as many devices as its largest arm. Where JAX sees fewer, start it with
XLA_FLAGS=--xla_force_host_platform_device_count=8 in the environment; started as above, it asks for them itself.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adaptlab as al


@dataclass
class Study:
    """The keys of conf/numerics.yaml.

    Attributes:
      base: the pretrained model.
      target: the corpus to adapt to.
      upstream: other corpora whose loss is measured, by name.
      adapt, optim: the adaptation.
      mesh: the reference's devices, see `adaptlab.study.part_of_devices`.
      precision: of the reference's matrix products, as of `jax.default_matmul_precision`; null is the backend's own.
      arms: what is different from the reference, by name: of `base`, `mesh`, `precision`, `adapt` and `optim`.
      seeds: one run per arm and seed.
      expectations: stated before the runs, see `adaptlab.report.expectation`.
      training: how long, on how much at a time.
      held_out: what is measured.
      hosts: one process; arms use parts of its devices.
      resume: continue the newest unfinished study with this very config.
      wandb: the W&B mirror.
    """

    base: "al.study.Base"
    target: dict[str, Any]
    upstream: dict[str, dict[str, Any]]
    adapt: dict[str, Any]
    optim: dict[str, Any]
    mesh: dict[str, Any]
    precision: str | None
    arms: dict[str, dict[str, Any]]
    seeds: list[int]
    expectations: dict[str, Any]
    training: dict[str, Any]
    held_out: dict[str, Any]
    hosts: dict[str, Any]
    resume: bool
    wandb: "al.study.Wandb"

    def recipe(self) -> dict[str, Any]:
        """What an arm may change."""
        return {part: getattr(self, part) for part in ("base", "mesh", "precision", "adapt", "optim")}


@al.study.app("numerics", Study)
def main(study: Study, folder: Path) -> float:
    """Run the reference and all arms; measure how far they part; judge; report."""
    arms = al.study.make_arms(study.recipe(), study.arms, study.seeds)
    al.study.check_devices(arms)
    lab = al.study.open_lab(study)

    # The runs, the reference first: the others are compared with its updates while they train.
    results = al.study.run_arms(lab, arms, folder, study.wandb)

    # Distances, growth, and what another seed does.
    curves = al.report.from_journals({name: folder / "runs" / name / "journal.jsonl" for name in results})
    expected, apart = al.config.instantiate(study.expectations), al.study.between_seeds(folder, arms)
    summary = al.report.summarise_numerics(curves, results, apart, expected, target=lab.target)
    passport, config = al.study.passport(lab, study, results, folder), (folder / "config.yaml").read_text()
    question = "How far do runs of one adaptation part that differ only in how they are computed?"
    path = al.report.write_numerics(folder, curves, results, summary, passport, config, question=question)
    al.report.print_numerics(summary)
    print(f"Report: {path}")
    return al.study.value(results)


if __name__ == "__main__":
    if "host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        os.environ.setdefault("JAX_NUM_CPU_DEVICES", "8")  # JAX reads it when it is imported; accelerators do not care
    main()
