"""Which learning rates, and which schedules, can a base be adapted with, and what do they cost it?

Every arm is trained at every learning rate with every seed, and measured on the way, as in `experiments.forgetting`:

    gain       = L_target(0) - L_target(s)          how much better it reads the target
    forgetting = L_upstream(s) - L_upstream(0)      how much worse it reads what it knew

A learning rate is usable if its gain comes near to that of the arm's best rate; the usable zone is measured in decades
of learning rate. What the study was set up to decide stands in conf/claims/lr_schedule.yaml, each claim with the rule
that decides it, and is judged by those rules: supported, contradicted or inconclusive.

    python -m experiments.pretrain                                  first: the small base, with its optimiser's state
    python -m experiments.lr_schedule                               all arms x learning rates x seeds
    python -m experiments.lr_schedule base=smollm2 '~arms.carried_state' '~arms.decayed_state' optim.lr=1e-4
    python -m experiments.lr_schedule -m optim.lr=1e-4,3e-4,1e-3,3e-3 'seed=range(8)' hydra/launcher=vmap
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import adaptlab as al


@dataclass
class Study:
    """The keys of conf/lr_schedule.yaml.

    Attributes:
      base: the pretrained model.
      target: the corpus to adapt to.
      upstream: the corpora not to forget, by name.
      adapt, optim, loss, terms, stopping, watch, carry: the recipe, see `adaptlab.study.Method`.
      seed: makes the study one run of the recipe; null runs all arms.
      arms: what is different from the recipe, by name.
      multiples: of each arm's `optim.lr`: its learning rates.
      seeds: one run per arm, learning rate and seed.
      claims: what is to be decided, see `adaptlab.report.claim`.
      training: how long, on how much at a time.
      held_out: what is measured.
      mesh: the devices.
      hosts: the processes that share them, see `adaptlab.hosts.Hosts`.
      replication: how runs that differ only in numbers are run together.
      resume: continue the newest unfinished study with this very config.
      wandb: the W&B mirror.
    """

    base: "al.study.Base"
    target: dict[str, Any]
    upstream: dict[str, dict[str, Any]]
    adapt: dict[str, Any]
    optim: dict[str, Any]
    loss: dict[str, Any] | None
    terms: dict[str, Any] | None
    stopping: dict[str, Any] | None
    watch: str | None
    carry: dict[str, Any] | None
    seed: int | None
    arms: dict[str, dict[str, Any]]
    multiples: list[float]
    seeds: list[int]
    claims: dict[str, Any] = field(default_factory=dict, kw_only=True)
    training: dict[str, Any]
    held_out: dict[str, Any]
    mesh: dict[str, Any]
    hosts: dict[str, Any]
    replication: dict[str, Any]
    resume: bool
    wandb: "al.study.Wandb"

    def members(self) -> list[Any]:
        """The runs: one of the recipe if it is given a seed, otherwise every arm at every learning rate and seed."""
        recipe = {part: getattr(self, part) for part in al.study.PARTS}
        if self.seed is not None:
            return al.study.members({"run": recipe}, [self.seed])
        arms = {name: al.config.merge(recipe, change, f"arms.{name}") for name, change in self.arms.items()}
        rates = {name: [m * arm["optim"]["lr"] for m in self.multiples] for name, arm in arms.items()}
        return al.study.members({n: arm | {"learning_rates": rates[n]} for n, arm in arms.items()}, self.seeds)


@al.study.app("lr_schedule", Study, runs=al.study.fewest_runs)
def main(study: Study, folder: Path) -> float:
    """Run all arms; measure; judge the claims; report."""
    # The base, placed once on its devices, and the text: what to learn, and what to measure.
    lab = al.study.open_lab(study, spread=True)

    # The runs. Those that differ only in numbers are one program.
    replication = al.config.instantiate(study.replication)
    results = al.study.run_members(lab, study.members(), folder, study.wandb, replication)

    # Gain and forgetting by arm and learning rate, and the verdicts.
    target, *upstream = lab.held_out
    curves = al.report.from_journals({name: folder / "runs" / name / "journal.jsonl" for name in results})
    summary = al.report.summarise(curves, results, target=target, upstream=upstream)
    claims = al.config.instantiate(study.claims) if study.seed is None else None
    verdicts = al.report.judge(claims, curves, results, target, upstream) if claims else None
    al.study.publish(
        folder,
        lab,
        study,
        curves,
        results,
        summary,
        verdicts,
        title="Learning rates and schedules",
        question="Which learning rates and schedules can this base be adapted with, and what do they cost it?",
    )
    return al.study.value(results)


if __name__ == "__main__":
    main()
