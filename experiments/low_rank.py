"""What does a low-rank update learn, what does it forget, and what does it look like?

Every method is trained at every rank and learning rate with every seed, and measured on the way, as in
`experiments.forgetting`:

    gain       = L_target(0) - L_target(s)          how much better it reads the target
    forgetting = L_upstream(s) - L_upstream(0)      how much worse it reads what it knew

Methods are compared over all their learning rates: the least that each forgets for a given gain. Random subspaces say
in how many dimensions the target can be learnt at all (the intrinsic dimension). And the methods' updates ΔW = W' - W
are measured, matrix by matrix: how large they are beside W and how far they turn it, their singular values and ranks
while they train, and once they are trained, where they lie beside the leading subspaces of W and of the gradient at the
start, how many singular vectors they bring that W never had (intruder dimensions), and what is left of gain and
forgetting if they are cut to a lower rank. The claims of conf/claims/low_rank.yaml are judged by the rules that stand
there.

    python -m experiments.pretrain                                  first: the small base
    python -m experiments.low_rank                                  all arms x ranks x learning rates x seeds
    python -m experiments.low_rank 'seeds=[0,1]' 'ranks=[1,8]' '~arms.pissa' '~arms.rslora'
    python -m experiments.low_rank experiment=low_rank_smollm2      on SmolLM2, for an accelerator
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import adaptlab as al


@dataclass
class Study:
    """The keys of conf/low_rank.yaml.

    Attributes:
      base: the pretrained model.
      target: the corpus to adapt to.
      upstream: the corpora not to forget, by name.
      adapt, optim: the recipe, see `adaptlab.study.Method`.
      arms: what is different from the recipe, by name; an arm whose adaptation has an `effective_rank` (or an
        `effective_dim`) is run at every rank of `ranks`, or at the `sizes` of its own.
      ranks: those ranks; a run has factors of the largest and uses what it needs, so that an arm is one program.
      multiples: of each arm's `optim.lr`: its learning rates.
      seeds: one run per arm, rank, learning rate and seed.
      claims: what is to be decided, see `adaptlab.report.claim`.
      measure: what is measured of updates, see `adaptlab.study.Measured`.
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
    arms: dict[str, dict[str, Any]]
    ranks: list[int]
    multiples: list[float]
    seeds: list[int]
    claims: dict[str, Any] = field(default_factory=dict, kw_only=True)
    measure: "al.study.Measured"
    training: dict[str, Any]
    held_out: dict[str, Any]
    mesh: dict[str, Any]
    hosts: dict[str, Any]
    replication: dict[str, Any]
    resume: bool
    wandb: "al.study.Wandb"

    def methods(self) -> dict[str, dict[str, Any]]:
        """Every arm at each of its sizes: `{"lora_r8": recipe}`, with its "family" and its "rank" or "dim"."""
        found = {}
        for family, change in self.arms.items():
            sizes, said = change.get("sizes", self.ranks), f"arms.{family}.sizes" if "sizes" in change else "ranks"
            change = {part: value for part, value in change.items() if part != "sizes"}
            arm = al.config.merge({"adapt": self.adapt, "optim": self.optim}, change, f"arms.{family}")
            arm |= {"learning_rates": [m * arm["optim"]["lr"] for m in self.multiples], "family": family}
            kind = next((kind for kind in ("rank", "dim") if f"effective_{kind}" in arm["adapt"]), None)
            if kind is None:
                found[family] = arm
                continue
            if not sizes or min(sizes) < 1:
                raise al.config.ConfigError(f"{said}={list(sizes)}: give at least one size, and none below 1.")
            for size in sizes:
                adapt = arm["adapt"] | {kind: max(sizes), f"effective_{kind}": float(size)}
                found[f"{family}_{kind[0]}{size}"] = arm | {"adapt": adapt, kind: size}
        return found

    def members(self) -> list[Any]:
        """The runs: every method at every learning rate and seed."""
        return al.study.members(self.methods(), self.seeds)


@al.study.app("low_rank", Study, runs=al.study.fewest_runs)
def main(study: Study, folder: Path) -> float:
    """Run all arms; measure gain, forgetting and updates; judge the claims; report."""
    # The base, placed once on its devices, and the text: what to learn, and what to measure.
    lab = al.study.open_lab(study, spread=True)

    # The runs. All ranks, learning rates and seeds of an arm are one program.
    replication, members = al.config.instantiate(study.replication), study.members()
    results = al.study.run_members(lab, members, folder, study.wandb, replication)
    methods, about = study.methods(), ("family", "rank", "dim")
    results = {name: r | {key: methods[r["method"]].get(key) for key in about} for name, r in results.items()}

    # Gain and forgetting, at each method's best learning rate, and over all of them by rank.
    target, *upstream = lab.held_out
    curves = al.report.from_journals({name: folder / "runs" / name / "journal.jsonl" for name in results})
    curves, updates = al.report.split_updates(curves)
    compared = {name: result for name, result in results.items() if result["dim"] is None}
    summary = al.report.summarise(curves, compared, target=target, upstream=upstream)
    summary |= {"ranks": al.report.by_rank(curves, results, target, upstream)}

    # The updates once they are trained; those of equal gain are also cut to lower ranks.
    if study.measure["final"]:
        equal = {name: method["equal_rate"] for name, method in summary["ranks"]["methods"].items()}
        wanted, own = al.config.instantiate(study.measure["final"]), [m for m in members if m.name in compared]
        final = al.study.final_updates(lab, own, folder, wanted, equal)
        updates = al.report.add_final(updates, final, {name: run["steps"] for name, run in results.items()})
        results = al.report.final_means(results, final)

    verdicts = al.report.judge(al.config.instantiate(study.claims), curves, results, target, upstream)
    al.study.publish(
        folder,
        lab,
        study,
        curves,
        results,
        summary,
        verdicts,
        updates=updates,
        title="Low-rank updates",
        question="What does a low-rank update learn, what does it forget, and what does it look like?",
    )
    return al.study.value(results)


if __name__ == "__main__":
    main()
