"""What does a language model forget while it learns something new?

A pretrained model is adapted to text of a target domain, by several methods side by side. On the way we measure its
loss L, in nats per token, on held-out text of the target and of upstream domains that it knew before:

    gain(s)       = L_target(0) - L_target(s)          how much better it reads the target after s updates
    forgetting(s) = L_upstream(s) - L_upstream(0)      how much worse it reads what it knew

Step 0 is the base itself. Two methods are compared where they gained the same: one that learns less also forgets less,
which says nothing about the method.

    python -m experiments.forgetting                                the quickstart: full fine-tuning and LoRA, one seed
    python -m experiments.forgetting experiment=forgetting_full     seeds and learning rates, with intervals
    python -m experiments.forgetting domain@target=dutch_speeches methods.lora.adapt.rank=64
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adaptlab as al


@dataclass
class Study:
    """The keys of conf/forgetting.yaml.

    Attributes:
      base: the pretrained model.
      target: the corpus to adapt to.
      upstream: the corpora not to forget, by name.
      methods: the ways of adapting, by name.
      seeds: one run per method, learning rate and seed.
      training: how long, on how much at a time.
      held_out: the text that is measured.
      measure: what else is measured while training, see `adaptlab.study.Probed`.
      mesh: the devices.
      hosts: the processes that share them, see `adaptlab.hosts.Hosts`.
      replication: how runs that differ only in numbers are run together.
      resume: continue the newest unfinished study with this very config.
      wandb: the W&B mirror.
    """

    base: "al.study.Base"
    target: dict[str, Any]
    upstream: dict[str, dict[str, Any]]
    methods: "dict[str, al.study.Method]"
    seeds: list[int]
    training: dict[str, Any]
    held_out: dict[str, Any]
    measure: "al.study.Probed"
    mesh: dict[str, Any]
    hosts: dict[str, Any]
    replication: dict[str, Any]
    resume: bool
    wandb: "al.study.Wandb"

    def members(self) -> list[Any]:
        """The runs: every method at each of its learning rates with every seed."""
        return al.study.members(self.methods, self.seeds)


@al.study.app("forgetting", Study)
def main(study: Study, folder: Path) -> float:
    """Adapt the base by every method, learning rate and seed; measure; compare; report."""
    # The base, placed once on its devices, and the text: what to learn, and what to measure.
    lab = al.study.open_lab(study)

    # The runs. Each one trains, and measures every held-out domain every few steps.
    replication = al.config.instantiate(study.replication)
    results = al.study.run_members(lab, study.members(), folder, study.wandb, replication)

    # Gain, forgetting, and forgetting at equal gain, with intervals over seeds.
    target, *upstream = lab.held_out
    curves = al.report.from_journals({name: folder / "runs" / name / "journal.jsonl" for name in results})
    summary = al.report.summarise(curves, results, target=target, upstream=upstream)
    al.study.publish(folder, lab, study, curves, results, summary)
    return al.study.value(results)


if __name__ == "__main__":
    main()
