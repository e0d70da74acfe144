"""A base of one's own: a small language model, trained from random weights on real text in minutes.

A decoder of the Llama family learns to predict the next token of three domains, mixed evenly: English news, English
speeches and Python source. Its tokenizer is learnt from the same text. Of every corpus it sees the training side
alone, cut by the hash of each document as in all studies, so what they hold out is new to it.

Because nothing about it is unknown, neither the text nor the state of the optimiser at its end, it can answer what a
published model cannot: whether a fine-tuning that goes on with the moments of pretraining forgets otherwise than one
that starts them afresh.

    python -m experiments.pretrain                              up to 13 minutes on two cores, once
    python -m experiments.pretrain out=bases/wide model.width=384 model.heads=12 training.duration.steps=2000
    python -m experiments.pretrain experiment=pretrain_moe      the same with a mixture of experts
    python -m experiments.forgetting base=small                 a study of it
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adaptlab as al


@dataclass
class Study:
    """The keys of conf/pretrain.yaml.

    Attributes:
      model: its sizes.
      domains: the corpora to learn from, by name.
      loss: the loss's factory; null is `adaptlab.models.language_modelling` as it is.
      capacity_factor: of a mixture of experts (`adaptlab.models.mixtral`); null drops no token.
      optim: the optimiser.
      seed: of the weights and of the order of the text.
      training: how long, on how much at a time.
      held_out: what is measured.
      mesh: the devices.
      hosts: the processes that share them, see `adaptlab.hosts.Hosts`.
      out: the base's folder; null is its place in the cache.
      resume: go on with what is there of this very config.
      wandb: the W&B mirror.
    """

    model: dict[str, Any]
    domains: dict[str, dict[str, Any]]
    loss: dict[str, Any] | None
    capacity_factor: float | None
    optim: dict[str, Any]
    seed: int
    training: dict[str, Any]
    held_out: dict[str, Any]
    mesh: dict[str, Any]
    hosts: dict[str, Any]
    out: str | None
    resume: bool
    wandb: "al.study.Wandb"


@al.study.base_app("pretrain", Study)
def main(study: Study, folder: Path) -> float:
    """Train the base; leave its weights, its optimiser's state and a report. A finished one is left as it is."""
    # The text of each domain, a tokenizer learnt from it, and random weights.
    shape, training, held_out, mesh = map(
        al.config.instantiate, (study.model, study.training, study.held_out, study.mesh)
    )
    work = al.study.open_pretraining(
        shape,
        study.domains,
        training,
        held_out,
        mesh,
        study.seed,
        folder,
        loss=study.loss,
        capacity_factor=study.capacity_factor,
    )

    # One run, of all weights. It measures every domain's held-out text every few steps.
    results = al.study.pretrain(work, study.optim, folder, study.wandb)

    # The first domain stands where other studies have their target, and the others beside it.
    first, *others = study.domains
    curves = al.report.from_journals({name: folder / "runs" / name / "journal.jsonl" for name in results})
    summary = al.report.summarise(curves, results, target=first, upstream=others)
    report = al.report.write_report(
        folder,
        curves=curves,
        runs=results,
        summary=summary,
        passport=al.study.pretraining_passport(work, study, results, folder),
        config_yaml=(folder / "config.yaml").read_text(),
        title="A small base, trained from random weights",
        question="How well does a small language model read each domain after how many updates?",
    )
    final = {domain: metrics["loss"]["mean"] for domain, metrics in summary["methods"]["pretrain"]["final"].items()}
    for domain, loss in final.items():
        print(f"{domain}: {loss:.3f} nats/token")
    print(f"The base: {folder}\nReport: {report}")
    return sum(final.values()) / len(final)


if __name__ == "__main__":
    main()
