"""A search over adaptations: which methods, of what size, in which layers and where in the model.

The space is that of AutoPEFT (arXiv:2301.12132, sec. 3.1: adapters in series, adapters in parallel, prefixes, each of a
size that may be none) with low-rank adaptation added, of a rank for each layer. Configurations are drawn at random, and
successive halving spends the budget on the better ones: random search, the baseline of every cleverer one.

It departs from AutoPEFT in three ways. A slot of the model holds one adapter, so series and parallel never meet at one
sub-layer. Only the low-rank part is switched layer by layer. Nothing is modelled: AutoPEFT's Bayesian optimisation with
several objectives is a sampler of Optuna's, one configuration a job.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from adaptlab import config, data, report
from adaptlab.study.lab import Lab
from adaptlab.study.provenance import passport

__all__ = [
    "SERIAL_AT",
    "Configuration",
    "Space",
    "configured",
    "describe",
    "publish_search",
    "sample",
    "search_value",
    "with_fresh_text",
]

SERIAL_AT = {
    "attention": "(.*/)?attention_adapter",
    "feed_forward": "(.*/)?feed_forward_adapter",
    "both": ".*",
}
"""Where adapters in series stand, as patterns of slots."""


@dataclass(frozen=True)
class Configuration:
    """A point of the space.

    Attributes:
      targets: which matrices get a low-rank update, a name in `Space.targets`, or "none".
      ranks: its rank in each layer, 0 for none.
      serial: the width of adapters in series, 0 for none.
      serial_at: behind which sub-layers, a name in `SERIAL_AT`.
      parallel: the width of adapters beside the feed-forward, 0 for none.
      prefix: the length of prefixes, 0 for none.
      alpha: of the low-rank update.
      lr: the peak learning rate.
    """

    targets: str
    ranks: list[int]
    serial: int
    serial_at: str
    parallel: int
    prefix: int
    alpha: float
    lr: float


class Space(NamedTuple):
    """What configurations are drawn from, each choice by itself and uniformly.

    Methods, targets, widths and lengths are static: each combination is a program. Ranks, alpha and learning rates are
    numbers, in which runs of one program differ.

    Attributes:
      layers: how many the base has.
      targets: which matrices get a low-rank update, by name, as patterns of paths; null is none.
      ranks: of a layer, 0 for none.
      serial: widths of adapters in series, 0 for none.
      serial_at: where these stand, names in `SERIAL_AT`.
      parallel: widths of adapters beside the feed-forward, 0 for none.
      prefix: lengths of prefixes, 0 for none.
      alpha: of low-rank updates.
      lr: peak learning rates.
    """

    layers: int
    targets: dict[str, str | None]
    ranks: Sequence[int] = (0, 2, 4, 8)
    serial: Sequence[int] = (0, 8)
    serial_at: Sequence[str] = ("attention",)
    parallel: Sequence[int] = (0, 8)
    prefix: Sequence[int] = (0, 4)
    alpha: Sequence[float] = (16.0,)
    lr: Sequence[float] = (1e-3, 3e-3, 1e-2)


def sample(space: Space, number: int, seed: int) -> list[Configuration]:
    """Draw different configurations; the same ones for the same seed, and the first of more.

    What another choice switches off makes no difference: ranks of 0 in every layer are no targets. Configurations that
    adapt nothing, or put two adapters into one slot, are drawn again.

    Raises:
      ConfigError: no choice, a name that is not in `SERIAL_AT`, or a space of too few configurations.
    """
    if number < 1:
        raise config.ConfigError(f"configurations={number}: at least one is drawn.")
    if empty := [key for key, choices in space._asdict().items() if key != "layers" and not choices]:
        raise config.ConfigError(f"space.{empty[0]} is empty: give at least one choice.")
    if unknown := sorted(set(space.serial_at) - SERIAL_AT.keys()):
        raise config.ConfigError(f"space.serial_at={unknown}: choose from {sorted(SERIAL_AT)}.")
    rng, found = np.random.default_rng(seed), {}
    for _ in range(200 * number):
        one = _drawn(space, rng)
        if _fits(one):
            found.setdefault(json.dumps(asdict(one)), one)
        if len(found) == number:
            return [*found.values()]
    raise config.ConfigError(
        f"configurations={number}: the space seems to hold only {len(found)}; ask for fewer, or widen it."
    )


def _drawn(space: Space, rng: np.random.Generator) -> Configuration:
    def pick(choices: Sequence[Any]) -> Any:
        return choices[int(rng.integers(len(choices)))]

    # Everything is drawn always, so that a choice more in one place changes nothing in the others.
    targets, ranks = pick([*space.targets]), [pick(space.ranks) for _ in range(space.layers)]
    serial, serial_at = pick(space.serial), pick(space.serial_at)
    parallel, prefix, alpha, lr = (pick(x) for x in (space.parallel, space.prefix, space.alpha, space.lr))
    if space.targets[targets] is None or not any(ranks):
        targets, ranks, alpha = "none", [0] * space.layers, space.alpha[0]
    if not serial:
        serial_at = space.serial_at[0]
    return Configuration(targets, ranks, serial, serial_at, parallel, prefix, alpha, lr)


def _fits(one: Configuration) -> bool:
    """Whether it adapts anything, and no slot holds two adapters."""
    some = any(one.ranks) or one.serial or one.parallel or one.prefix
    return bool(some) and not (one.serial and one.parallel and one.serial_at != "attention")


def configured(space: Space, one: Configuration, optim: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration as a method of a study: `{"adapt": a chain of its parts, "optim": …}`.

    Args:
      space: says what its names mean; its largest rank is that of the factors.
      one: the configuration.
      optim: the optimiser's config, whose learning rate is replaced.

    Raises:
      ConfigError: it adapts nothing, has two adapters in one slot, unknown targets, or ranks the space has no room for.
    """
    if not _fits(one):
        raise config.ConfigError(f"{one} adapts nothing, or has two adapters in one slot; see adaptlab.study.Space.")
    stages: dict[str, Any] = {}
    if any(one.ranks):
        if (select := space.targets.get(one.targets)) is None or max(one.ranks) > max(space.ranks):
            raise config.ConfigError(
                f"targets={one.targets!r} of ranks {one.ranks}: the space has {sorted(space.targets)} and ranks up to "
                f"{max(space.ranks)}."
            )
        ranks = [float(rank) for rank in one.ranks]
        stages["lora"] = _call("lora", rank=max(space.ranks), alpha=one.alpha, layer_ranks=ranks, select=select)
    if one.serial:
        stages["serial"] = _call("bottleneck", width=one.serial, placement="houlsby", select=SERIAL_AT[one.serial_at])
    if one.parallel:
        # The activation and the factor of He et al. (arXiv:2110.04366, table 1).
        stages["parallel"] = _call("bottleneck", width=one.parallel, placement="parallel", activation="relu", scale=4.0)
    if one.prefix:
        stages["prefix"] = _call("prefix", length=one.prefix)
    return {"adapt": config.validate(_call("chain", stages=stages), "adapt"), "optim": {**optim, "lr": one.lr}}


def _call(factory: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"adaptlab.adapt.{factory}", **arguments}


def describe(one: Configuration) -> str:
    """Return a configuration in a few words, e.g. "LoRA 8-0-4-2 on attention, prefix 4"."""
    said = [f"LoRA {'-'.join(map(str, one.ranks))} on {one.targets}"] if any(one.ranks) else []
    said += [f"serial {one.serial} at {one.serial_at}"] if one.serial else []
    said += [f"parallel {one.parallel}"] if one.parallel else []
    said += [f"prefix {one.prefix}"] if one.prefix else []
    return ", ".join(said)


def with_fresh_text(lab: Lab, study: Any) -> Lab:
    """Return the lab with other held-out text of the target: documents that `lab` neither trains on nor measures.

    What was selected by one text is thus reported on another.

    Args:
      lab: the lab of the selection.
      study: has `base`, `target` and `held_out`, see `adaptlab.study.open_lab`.

    Raises:
      ConfigError: nothing is left, since the selection measures all documents that are held out.
    """
    held_out, tokenizer = config.instantiate(study.held_out), config.instantiate(study.base["tokenizer"])
    record = lab.provenance["corpora"][lab.target]
    documents = data.split(config.instantiate(study.target), held_out.fraction).held_out.documents
    rows, tokens = [], 0
    for document in documents[record["held_out"]["documents_used"] :]:
        if tokens >= (held_out.tokens or math.inf):
            break
        ids = tokenizer.encode([document])[0][: held_out.max_document_tokens]
        rows += [ids] if len(ids) > 1 else []
        tokens += len(ids)
    if not rows:
        raise config.ConfigError(
            f"held_out.tokens={held_out.tokens} takes all {len(documents)} held-out documents of the target: no fresh "
            f"text is left for the finalists. Lower it, or raise held_out.fraction."
        )
    batches = data.fixed_batches(data.pack(rows, lab.training.length), held_out.batch_size)
    fresh = {lab.target: [lab.put(batch) for batch in batches]}
    corpora = lab.provenance["corpora"] | {lab.target: record | {"fresh": {"documents": len(rows), "tokens": tokens}}}
    return lab._replace(held_out=lab.held_out | fresh, provenance=lab.provenance | {"corpora": corpora})


def publish_search(
    folder: Path,
    lab: Lab,
    study: Any,
    search: Mapping[str, Any],
    curves: Any,
    final: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write what a search leaves, and show it.

    Args:
      folder: the study's.
      lab: of the finalists' fresh runs.
      study: the study's dataclass.
      search: see `adaptlab.report.summarise_search`.
      curves: of the runs that were selected from.
      final: the results of the finalists' fresh runs.
    """
    journals = {name: folder / "runs" / name / "journal.jsonl" for name in final}
    fresh, (target, *upstream) = report.from_journals(journals), lab.held_out
    said, text = passport(lab, study, final, folder), (folder / "config.yaml").read_text()
    summary = report.summarise(fresh, final, target=target, upstream=upstream) | {"search": search}
    report.save_curves(folder / "search.parquet", curves)
    report.write_report(folder, fresh, final, summary, said, text, figures=False)
    question = f"Which adaptation gains most on {target.replace('_', ' ')} for the parameters it trains?"
    path = report.write_search(folder, search, said, text, question=question)
    report.print_search(search)
    print(f"Report: {path}")


def search_value(search: Mapping[str, Any]) -> float:
    """Return what a sweeper should make small: minus the largest mean fresh reward; infinite if no finalist has one."""
    by = "per_parameter" if search["reward"] == "gain_per_parameter" else "gain"
    means = [row["fresh"][by]["mean"] for row in search["configurations"].values() if row["fresh"]]
    return -max((mean for mean in means if math.isfinite(mean)), default=-math.inf)
