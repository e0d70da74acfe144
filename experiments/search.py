"""Which adaptation gains most for its size: which methods, in which layers, of what rank or width, and where?

Configurations are drawn at random from a declared space (AutoPEFT's, arXiv:2301.12132, with low-rank updates of a rank
for each layer) and compared by what they gain on held-out text for each parameter they train:

    gain   = L_base - L_run        on the target, in nats per token
    reward = gain / parameters

in successive halving: all train a part of the way, the best third three times as far, and so on. Since the reward alone
prefers the smallest methods, the front of gain and parameters is kept beside its winners. These finalists are trained
again with seeds, and measured on text, that selected nothing: the gains of the search itself are those of the luckiest.

    python -m experiments.pretrain                          first: the small base
    python -m experiments.search                            24 configurations, a few finalists with three fresh seeds
    python -m experiments.search configurations=100 reward=gain sample_seed=1
    python -m experiments.search -m seed=0 'configuration.ranks.0=0,4,8' 'configuration.ranks.3=0,4,8' \\
        hydra/launcher=vmap                                 a sweep of one configuration's numbers; also Optuna's jobs
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adaptlab as al


@dataclass
class Study:
    """The keys of conf/search.yaml.

    Attributes:
      base: the pretrained model.
      target: the corpus to adapt to.
      upstream: the corpora not to forget, by name.
      optim: the optimiser; a configuration has its own learning rate.
      space: what configurations are drawn from, see `adaptlab.study.Space`.
      configurations: how many.
      sample_seed: draws them.
      reward: what they are compared by, "gain" or "gain_per_parameter"; also what one run returns to a sweeper.
      halving: when, and how many go on, see `adaptlab.study.successive_halving`.
      search_seed: the seed of the runs that are selected from.
      finalists: how many are trained again, at most.
      final_seeds: their seeds, none of them the search's.
      seed: makes the study one run of `configuration`; null searches.
      configuration: that one, see `adaptlab.study.Configuration`.
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
    optim: dict[str, Any]
    space: dict[str, Any]
    configurations: "al.config.Count"
    sample_seed: int
    reward: str
    halving: dict[str, Any]
    search_seed: int
    finalists: "al.config.Count"
    final_seeds: list[int]
    seed: int | None
    configuration: "al.study.Configuration"
    training: dict[str, Any]
    held_out: dict[str, Any]
    mesh: dict[str, Any]
    hosts: dict[str, Any]
    replication: dict[str, Any]
    resume: bool
    wandb: "al.study.Wandb"

    def drawn(self) -> dict[str, Any]:
        """The configurations of the search, by name."""
        found = al.study.sample(al.config.instantiate(self.space), self.configurations, self.sample_seed)
        return {f"c{i:02}": one for i, one in enumerate(found)}

    def methods(self) -> dict[str, dict[str, Any]]:
        """What they come to, or the one configuration if it is given a seed."""
        space = al.config.instantiate(self.space)
        chosen = self.drawn() if self.seed is None else {"run": al.study.Configuration(**self.configuration)}
        return {name: al.study.configured(space, one, self.optim) for name, one in chosen.items()}

    def members(self) -> list[Any]:
        """The runs to select from, or the one run."""
        return al.study.members(self.methods(), [self.search_seed if self.seed is None else self.seed])


@al.study.app("search", Study)
def main(study: Study, folder: Path) -> float:
    """Search; train the finalists again; report. With a seed, run the one configuration."""
    if study.seed is not None:
        return one_run(study, folder)
    if study.search_seed in study.final_seeds:
        raise al.config.ConfigError(f"final_seeds={study.final_seeds} has the seed that selects, {study.search_seed}.")

    # The base, placed once on its devices, and the text: what to learn, and what to select by.
    lab = al.study.open_lab(study)
    fresh = al.study.with_fresh_text(lab, study)
    base = {"selection": target_loss(lab), "fresh": target_loss(fresh)}

    # The search: all configurations to the first rung, the best on to the next, and so on.
    replication, halving = al.config.instantiate(study.replication), al.config.instantiate(study.halving)
    results = al.study.run_members(lab, study.members(), folder, study.wandb, replication, halving)
    curves = al.report.from_journals({name: folder / "runs" / name / "journal.jsonl" for name in results})
    first, *_ = [*halving.rungs(lab.total_steps, lab.training.measure_every), lab.total_steps]
    gains = al.report.gains_at(curves, results, lab.target, first, base["selection"])

    # The finalists, on seeds and text that have selected nothing.
    chosen = al.report.finalists(results, gains, study.finalists)
    again = al.study.members({name: study.methods()[name] for name in chosen}, study.final_seeds)
    final = al.study.run_members(fresh, again, folder, study.wandb, replication)

    # The account of both, with the usual summary of the finalists.
    said = {name: al.study.describe(one) for name, one in study.drawn().items()}
    search = al.report.summarise_search(said, results, final, base, study.reward)
    al.study.publish_search(folder, fresh, study, search, curves, final)
    return al.study.search_value(search)


def target_loss(lab: Any) -> float:
    """The base's own held-out loss on the target."""
    return al.study.base_losses(lab)[f"held_out/{lab.target}/loss"]


def one_run(study: Study, folder: Path) -> float:
    """Train one configuration, and return minus its reward: a job of a sweep."""
    lab = al.study.open_lab(study)
    replication = al.config.instantiate(study.replication)
    results = al.study.run_members(lab, study.members(), folder, study.wandb, replication)
    target, *upstream = lab.held_out
    curves = al.report.from_journals({name: folder / "runs" / name / "journal.jsonl" for name in results})
    summary = al.report.summarise(curves, results, target=target, upstream=upstream)
    al.study.publish(folder, lab, study, curves, results, summary, title="One configuration of a search")
    return al.study.reward_value(results, study.reward, target_loss(lab))


if __name__ == "__main__":
    main()
