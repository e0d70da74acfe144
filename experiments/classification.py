"""What does an encoder gain on a labelled task, and what becomes of the similarities it knew?

A pretrained encoder with a new linear head is fine-tuned on labelled texts by several methods side by side: all
weights, LoRA, the biases, or the head alone (a linear probe). On the way we measure, on texts nobody trains on,

    the task      accuracy, macro-F1 and loss
    forgetting    how far the cosine similarities between texts of other corpora have moved from the base's, see
                  `adaptlab.measure.sentence_similarity`: the base predicts no words, so its embeddings are what it knew

A linear probe leaves the encoder as it is, and forgets nothing: it says what the task needs beyond the base.

    python -m experiments.classification                            BBC News, one seed
    python -m experiments.classification task=r8 texts.held_out=null training.duration.steps=500
    python -m experiments.classification task=rotten_tomatoes 'seeds=[0,1,2]' methods.full.learning_rates=[3e-5,1e-4]
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adaptlab as al


@dataclass
class Study:
    """The keys of conf/classification.yaml.

    Attributes:
      base: the pretrained encoder.
      task: the labelled corpus.
      upstream: the corpora whose similarities should stay, by name.
      loss: the training loss of methods that have none of their own.
      methods: the ways of adapting, by name.
      seeds: one run per method, learning rate and seed.
      training: how long, on how much at a time.
      texts: how many texts are used, see `adaptlab.study.Texts`.
      mesh: the devices.
      hosts: the processes that share them, see `adaptlab.hosts.Hosts`.
      replication: how runs that differ only in numbers are run together.
      resume: continue the newest unfinished study with this very config.
      wandb: the W&B mirror.
    """

    base: "al.study.Base"
    task: dict[str, Any]
    upstream: dict[str, dict[str, Any]]
    loss: dict[str, Any]
    methods: "dict[str, al.study.Method]"
    seeds: list[int]
    training: dict[str, Any]
    texts: dict[str, Any]
    mesh: dict[str, Any]
    hosts: dict[str, Any]
    replication: dict[str, Any]
    resume: bool
    wandb: "al.study.Wandb"


@al.study.app("classification", Study)
def main(study: Study, folder: Path) -> float:
    """Adapt the encoder by every method, learning rate and seed; measure; summarise."""
    # The encoder with a head over the task's classes, and the texts.
    lab = al.study.open_labelled_lab(study)

    # The runs. Each one trains, and measures the task and the similarities every few steps.
    methods = {name: {**method, "loss": method.get("loss") or study.loss} for name, method in study.methods.items()}
    replication = al.config.instantiate(study.replication)
    results = al.study.run_members(lab, al.study.members(methods, study.seeds), folder, study.wandb, replication)

    # Accuracy and forgetting by method, with intervals over seeds.
    task, *upstream = lab.held_out
    curves = al.report.from_journals({name: folder / "runs" / name / "journal.jsonl" for name in results})
    summary = al.report.summarise_labels(curves, results, task, upstream)
    al.report.write_report(
        folder,
        curves=curves,
        runs=results,
        summary=summary,
        passport=al.study.passport(lab, study, results, folder),
        config_yaml=(folder / "config.yaml").read_text(),
        figures=False,
    )
    al.report.print_labels(summary)
    return al.study.value(results)


if __name__ == "__main__":
    main()
