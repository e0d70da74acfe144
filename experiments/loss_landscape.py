"""Over which loss surface does fine-tuning move, and what does its shape have to do with forgetting?

One base is tuned to two targets, near to what it was trained on and far from it, by several methods, learning rates and
seeds. With W the base's weights and W' the tuned model's, it is then asked:

    Is W' in the basin of W?        the barrier on the straight line: by how much the loss of any domain rises above the
                                    chord, max over t of L(W + t(W' - W)) - (1 - t) L(W) - t L(W')
    How sharp is W along W' - W?    the curvature of the upstream loss there, against random directions of equal norms
    Does that predict forgetting?   the second-order forecast at W against what was forgotten, over all runs
    Does warm-up avoid the cliff?   the early peak of forgetting with and without it, at equal learning rates
    Do two seeds connect?           the barrier between two fine-tunings, and between two models trained from scratch

Surfaces over the plane of the base and two tuned models, with the ways that training took on it, over random
directions and over the sharpest ones, and spectra of the Hessian show what the numbers stand for. The claims of
conf/claims/loss_landscape.yaml are judged by the rules that stand there.

    python -m experiments.pretrain                                          first: the small base
    python -m experiments.loss_landscape                                    all arms x learning rates x seeds
    python -m experiments.loss_landscape 'seeds=[0]' 'multiples=[1,10]' 'measure.planes=[models]'
    python -m experiments.loss_landscape experiment=loss_landscape_smollm2  surfaces and spectra of SmolLM2-135M
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import adaptlab as al


@dataclass
class Study:
    """The keys of conf/loss_landscape.yaml.

    Attributes:
      base: the pretrained model.
      targets: the corpora to adapt to, by how far they are from the base.
      upstream: the corpora not to forget, by name.
      adapt, optim: the recipe, see `adaptlab.study.Method`.
      arms: what is different from the recipe, by name; an arm may have `multiples` of its own, and `targets`: for which
        of them it is run.
      multiples: of each arm's `optim.lr`: its learning rates.
      seeds: one run per target, arm, learning rate and seed.
      twins: the methods, `<target>_<arm>`, whose runs at the arm's own `optim.lr` are trained with a second seed too.
      shown: the target of which there are surfaces and spectra.
      tolerance: the highest barrier, in nats per token, that counts as none.
      claims: what is to be decided, see `adaptlab.report.claim`.
      measure: what is measured of the landscape, see `adaptlab.study.FinalLandscape`.
      training: how long, on how much at a time.
      held_out: what is measured.
      mesh: the devices.
      hosts: the processes that share them, see `adaptlab.hosts.Hosts`.
      replication: how runs that differ only in numbers are run together.
      resume: continue the newest unfinished study with this very config.
      wandb: the W&B mirror.
    """

    base: "al.study.Base"
    targets: dict[str, dict[str, Any]]
    upstream: dict[str, dict[str, Any]]
    adapt: dict[str, Any]
    optim: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    multiples: list[float]
    seeds: list[int]
    twins: list[str]
    shown: str
    tolerance: float
    claims: dict[str, Any] = field(default_factory=dict, kw_only=True)
    measure: dict[str, Any]
    training: dict[str, Any]
    held_out: dict[str, Any]
    mesh: dict[str, Any]
    hosts: dict[str, Any]
    replication: dict[str, Any]
    resume: bool
    wandb: "al.study.Wandb"

    def methods(self, place: str) -> dict[str, dict[str, Any]]:
        """Every arm that is run for a target: `{"far_full": recipe}`, with its "arm" and its "place"."""
        found = {}
        for name, change in self.arms.items():
            own = {part: change[part] for part in ("multiples", "targets") if part in change}
            if place in own.get("targets", self.targets):
                change = {part: value for part, value in change.items() if part not in own}
                arm = al.config.merge({"adapt": self.adapt, "optim": self.optim}, change, f"arms.{name}")
                rates = [m * arm["optim"]["lr"] for m in own.get("multiples", self.multiples)]
                found[f"{place}_{name}"] = arm | {"learning_rates": rates, "arm": name, "place": place}
        return found


@al.study.app("loss_landscape", Study)
def main(study: Study, folder: Path) -> float:
    """Tune the base; measure lines, surfaces and spectra; judge the claims; report."""
    # One lab for each target, over one base.
    labs = al.study.open_labs(study)
    replication, wanted = al.config.instantiate(study.replication), al.config.instantiate(study.measure)

    results, lines, between = {}, {}, {}
    for place, lab in labs.items():
        # The runs, and for some of them a twin with another seed.
        methods = study.methods(place)
        members = al.study.members(methods, study.seeds)
        pairs = al.study.twins(methods, study.twins, study.seeds)
        every = [*members, *(twin for _, twin in pairs.values())]
        done = al.study.run_members(lab, every, folder, study.wandb, replication)
        about = {m.name: {"arm": methods[m.method]["arm"], "place": place, "target": lab.target} for m in members}
        results |= {name: done[name] | said for name, said in about.items()}

        # The straight lines from the base to the tuned models, and between twins.
        to_tuned, to_twins = al.study.straight_lines(lab, members, pairs, folder, wanted)
        lines, between = lines | to_tuned, between | to_twins

    # Surfaces over planes through base and tuned models, and spectra of the Hessian, of one seed.
    lab, methods = labs[study.shown], study.methods(study.shown)
    shown, ways = (
        al.study.at_own_rate(methods, [f"{study.shown}_{arm}" for arm in arms], study.seeds[0])
        for arms in (wanted.shown, wanted.trajectories)
    )
    surfaces = al.study.surfaces(lab, shown, ways, folder, wanted)
    spectra = al.study.spectra(lab, shown, folder, wanted) if wanted.spectra else []

    # What it comes to, by method and learning rate, and the verdicts.
    upstream = [*study.upstream]
    results = al.report.with_lines(results, lines, between)
    journals = {name: folder / "runs" / name / "journal.jsonl" for name in results}
    curves = al.report.landscape_curves(journals, {name: r["target"] for name, r in results.items()})
    summary = al.report.summarise_landscape(curves, results, upstream, spectra, study.tolerance)
    verdicts = al.report.judge(al.config.instantiate(study.claims), curves, results, "target", upstream)
    rates = {name: arm["optim"]["lr"] for place in labs for name, arm in study.methods(place).items()}
    landscape = al.report.Landscape(
        summary,
        lines=al.report.lines_by_seed(lines, results, rates),
        twins=al.report.lines_by_seed(between, results),
        surfaces=surfaces,
        spectra=spectra,
    )
    al.study.publish_landscape(
        folder,
        labs,
        study,
        curves,
        results,
        landscape,
        verdicts,
        title="The loss landscape of fine-tuning",
        question="Over which loss surface does fine-tuning move, and what does its shape have to do with forgetting?",
    )
    return al.study.value(results)


if __name__ == "__main__":
    main()
