"""How do pre-training, transfer and forgetting scale, and can the largest model be predicted from the smaller ones?

A ladder of small decoders, all of whose sizes follow from one integer, is trained from random weights on real text at
several budgets. Each rung is then adapted to German, by every method, with several amounts of text, and trained on the
same German from scratch. To what comes out are fitted

    pre-training   L(N, D)          upstream loss by parameters and tokens (Hoffmann et al., arXiv:2203.15556)
    adaptation     L(N, D)          target loss by parameters and target text (Zhang et al., arXiv:2402.17193)
    transfer       D_T(D, N)        what pre-training is worth in target text (Hernandez et al., arXiv:2102.01293)
    rank           L(R, D)          target loss by the rank of a low-rank update
    forgetting     L(P, s)          upstream loss by tuned parameters and updates (Kalajdzievski, arXiv:2401.05605)

The largest rung is predicted by the laws of the smaller ones, with intervals, before it is trained: the predictions are
written and sealed by their SHA-256, which its runs and the passport carry, and scored when it is done.

    python -m experiments.scaling                                   about half an hour on two idle cores
    python -m experiments.scaling experiment=scaling_smoke          a few minutes
    python -m experiments.scaling 'ladder.rungs=[1,2,3,4,5,6,7]'    to 4.4 million parameters: hours
    python -m scripts.fit_scaling data=runs/scaling/TIME/points.csv form=chinchilla \
        'x=[N=parameters,D=tokens]' y=upstream_loss 'where=stage==pretraining' holdout='split==largest'
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import adaptlab as al


@dataclass
class Study:
    """The keys of conf/scaling.yaml.

    Attributes:
      ladder: how the rungs follow from their dials, see `adaptlab.study.ladder.ladder`.
      domains: the corpora that bases are made of, by name.
      target: the corpus to adapt to.
      optim: the optimiser of pre-training; its learning rate follows from the ladder.
      pretraining: how often it is measured and saved.
      adapt, tune: the recipe of adaptation: its factory and its optimiser.
      methods: what is different from the recipe, by name, and its learning rate as a `multiple` of the rate that
        the rung is pre-trained with; with `ranks`, at each of them, and with `sizes` of its own.
      sizes: tokens of the target there are.
      seeds: one run per cell and seed.
      laws: what is fitted to what, see `adaptlab.study.law`.
      level: of all intervals.
      draws: refits of the bootstrap.
      claims: what is to be decided, see `adaptlab.report.claim`.
      training: how long adaptations train, on how much at a time.
      held_out: what is measured.
      mesh: the devices.
      hosts: the processes that share them, see `adaptlab.hosts.Hosts`.
      replication: how runs that differ only in numbers are run together.
      gflops: what a step reaches on this machine, for the estimate of how long it takes.
      keep: whether finished bases are copied into the cache, where `base=ladder` finds them.
      resume: continue the newest unfinished study with this very config.
      wandb: the W&B mirror.
    """

    ladder: dict[str, Any]
    domains: dict[str, dict[str, Any]]
    target: dict[str, Any]
    optim: dict[str, Any]
    pretraining: dict[str, int]
    adapt: dict[str, Any]
    tune: dict[str, Any]
    methods: dict[str, dict[str, Any]]
    sizes: list[int]
    seeds: list[int]
    laws: dict[str, Any]
    level: float
    draws: int
    claims: dict[str, Any] = field(default_factory=dict, kw_only=True)
    training: dict[str, Any]
    held_out: dict[str, Any]
    mesh: dict[str, Any]
    hosts: dict[str, Any]
    replication: dict[str, Any]
    gflops: float
    keep: bool
    resume: bool
    wandb: "al.study.Wandb"


@al.study.app("scaling", Study, runs=lambda study: len(study.seeds))
def main(study: Study, folder: Path) -> float:
    """Train the smaller rungs; predict the largest; train it; fit the laws; score, judge and report."""
    # What will be run, what it costs, and the text that all rungs share.
    plan = al.study.plan_ladder(study)
    laws, claims = al.config.instantiate(study.laws), al.config.instantiate(study.claims)
    text = al.study.open_ladder_text(study, plan, folder)

    # Every rung but the largest: pre-trained at every budget, then its base adapted in every way to every amount.
    *smaller, largest = plan.ladder.rungs
    results = {}
    for rung in smaller:
        results |= al.study.run_rung(text, plan, rung, study, folder)
    rows = al.study.save_points(folder, al.study.with_transfer(results), "points_smaller")

    # What their laws say of the largest, sealed before its first step.
    def predict() -> dict[str, Any]:
        points = folder / "points_smaller.csv"
        return al.study.make_predictions(laws, plan, rows, points, level=study.level, draws=study.draws)

    seal = al.study.seal(folder, plan.homes(largest, folder), predict)

    # The largest, and how the predictions fared.
    results |= al.study.run_rung(text, plan, largest, study, folder)
    scored = al.study.score(folder, seal, results)

    # The laws of all rungs, the verdicts and the report.
    results = al.study.with_transfer(results)
    rows, by_step = al.study.save_points(folder, results), al.study.save_forgetting(folder, text, results)
    summary = al.study.publish_ladder(
        folder,
        text,
        study,
        results,
        rows,
        al.study.fit_laws(laws, rows, by_step, level=study.level, draws=study.draws),
        scored,
        seal,
        claims,
        title="A ladder of models, adapted",
        question="How do pre-training, transfer and forgetting scale, and can the largest model be predicted?",
    )
    if study.keep:
        print(f"Bases: {al.study.keep_bases(folder, plan.ladder.rungs)} (base=ladder in other studies)")
    return summary["rungs"][-1]["pretraining"][-1]["loss"]


if __name__ == "__main__":
    main()
