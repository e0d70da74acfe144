"""The labs of a ladder: one text and one tokenizer for all rungs; random weights or a rung's base."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from adaptlab import config, data, measure, models, shard
from adaptlab.data.bpe import sample_text, train_bpe
from adaptlab.study.devices import over_all_devices
from adaptlab.study.lab import Lab, open_base, origin, trained_on
from adaptlab.study.ladder.plan import Cell, LadderPlan
from adaptlab.study.ladder.sizes import Ladder, Rung
from adaptlab.study.settings import Training
from adaptlab.train import duration

__all__ = ["LadderText", "adaptation_lab", "ladder_base", "open_ladder_text", "pretraining_lab", "with_text"]

log = logging.getLogger(__name__)

TOKENIZER = "tokenizer.json"


class LadderText(NamedTuple):
    """Everything that all rungs share.

    Attributes:
      ladder: the ladder.
      tokenizer: its file.
      token_bytes_V: see `adaptlab.data.Tokenizer`.
      pretraining: rows of the domains that bases are made of, equally many tokens of each.
      target: rows of the domain adapted to.
      held_out: `{domain: batches}`, on the host: the target first.
      mesh: the devices.
      corpora: what the passport says of the text.
    """

    ladder: Ladder
    tokenizer: Path
    token_bytes_V: np.ndarray
    pretraining: data.Batch
    target: data.Batch
    held_out: dict[str, list[data.Batch]]
    mesh: jax.sharding.Mesh
    corpora: dict[str, Any]

    @property
    def domain(self) -> str:
        """The domain adapted to."""
        return next(iter(self.held_out))

    @property
    def upstream(self) -> list[str]:
        """The domains that bases are made of."""
        return [*self.held_out][1:]


def open_ladder_text(study: Any, plan: LadderPlan, folder: Path) -> LadderText:
    """Learn the tokenizer from the domains' training sides (once a folder) and load the text.

    Text is split as in every study, by the hash of each document. Of the domains that bases are made of, each gives an
    equal share of the largest budget.

    Args:
      study: has `domains`, `target`, `held_out` and `mesh`, see `experiments.scaling`.
      plan: how much text it takes.
      folder: the study's.

    Raises:
      ConfigError: the target is one of the domains, or has too little text.
    """
    ladder, most, held_out = plan.ladder, plan.most, config.instantiate(study.held_out)
    domains, target = study.domains, study.target
    corpora = {name: config.instantiate(node) for name, node in domains.items()}
    path = folder / TOKENIZER
    if not path.exists():
        sides = {name: data.split(corpus, held_out.fraction).train for name, corpus in corpora.items()}
        partial = path.with_name(path.name + ".partial")
        vocab_size = ladder.largest.shape.vocab_size
        partial.write_text(train_bpe(sample_text(sides, characters=1_000_000), vocab_size))
        os.replace(partial, path)
    tokenizer = data.json_tokenizer(path)

    def domain(corpus: data.Corpus, tokens: int) -> data.Domain:
        return data.load_domain(
            corpus,
            tokenizer,
            ladder.length,
            held_out=held_out.fraction,
            max_train_tokens=tokens + 1,  # the last one is only predicted
            max_held_out_tokens=held_out.tokens,
            max_document_tokens=held_out.max_document_tokens,
        )

    share = -(-max(ladder.budgets) // len(corpora))
    goal = domain(config.instantiate(target), most)
    if goal.name in corpora:
        raise config.ConfigError(f"domains.{goal.name} is also the target: a base must not have seen it.")
    if len(goal.train.tokens) * ladder.length < most:
        there = len(goal.train.tokens) * ladder.length
        raise config.ConfigError(
            f"{goal.name} has {there} tokens to train on, not the {most} asked for: lower `sizes`."
        )
    loaded = {name: domain(corpus, share) for name, corpus in corpora.items()}
    parts = [one.train for one in loaded.values()]
    joined = data.Batch(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    log.info("%d rows of %d tokens to pre-train on", len(joined.tokens), ladder.length)
    every = {goal.name: goal, **loaded}
    return LadderText(
        ladder=ladder,
        tokenizer=path,
        token_bytes_V=tokenizer.token_bytes_V,
        pretraining=joined,
        target=goal.train,
        held_out={name: data.fixed_batches(one.held_out, held_out.batch_size) for name, one in every.items()},
        mesh=config.instantiate(over_all_devices(study.mesh)),
        corpora={name: one.provenance for name, one in every.items()},
    )


def pretraining_lab(text: LadderText, cell: Cell, *, measurements: int, save_every: int) -> Lab:
    """Return the lab of a rung's pre-training at a budget: `adaptlab.adapt.scratch` in it starts at random weights.

    So the runs of all seeds are one program, resumable and mirrored as those of any study. The weights it holds
    themselves are never read.

    Args:
      text: what all rungs share.
      cell: the rung and its budget.
      measurements: how often held-out text is measured after the start.
      save_every: steps between checkpoints.
    """
    assert cell.budget is not None
    model = models.by_fan_in(models.llama(cell.rung.shape))
    drawn = models.Pretrained(
        name=f"{cell.rung.name}, random weights",
        model=model,
        load=lambda: jax.device_get(model.init(jax.random.key(0))),
        fingerprint=config.config_hash(vars(cell.rung.shape)),
        context=text.ladder.length,
    )
    placement = shard.Placement(text.mesh, model.axes())
    drawn = drawn._replace(model=models.placed(model, placement))
    where = placement.shardings(placement.axes, jax.eval_shape(model.init, jax.random.key(0)))
    training = Training(
        duration=duration(steps=cell.budget.steps),
        batch_size=cell.budget.batch_size,
        length=text.ladder.length,
        measure_every=-(-cell.budget.steps // measurements),
        save_every=save_every,
    )
    params = jax.jit(model.init, out_shardings=where)(jax.random.key(0))
    return _lab(text, drawn, params, placement, training, text.pretraining, {})


def ladder_base(folder: Path, one: Rung) -> dict[str, Any]:
    """Return the config of a rung's base in a folder, see `adaptlab.study.Base`."""
    weights = {"_target_": "adaptlab.source.local", "path": str(folder)}
    return {
        "model": {"_target_": "adaptlab.models.pretrained", "source": weights, "name": one.name},
        "tokenizer": {"_target_": "adaptlab.data.load_tokenizer", "source": weights},
        "weights": weights,
        "optimizer": None,
        "quantize": None,
    }


def adaptation_lab(text: LadderText, base: Mapping[str, Any], training: Training) -> Lab:
    """Return the lab of a rung's adaptations to all the text there is; see `with_text` for less of it.

    Args:
      text: what all rungs share.
      base: from `ladder_base`.
      training: how long, on how much at a time.
    """
    pretrained, placement, params = open_base(base, text.mesh)
    pretrained = pretrained._replace(model=models.by_fan_in(pretrained.model))  # what learns from scratch starts alike
    return _lab(text, pretrained, params, trained_on(placement, training), training, text.target, base)


def with_text(lab: Lab, rows: int) -> Lab:
    """Return the lab with the first rows of its text only: a random sample of the documents, always the same."""
    return lab._replace(train=type(lab.train)(*(part[:rows] for part in lab.train)))


def _lab(
    text: LadderText,
    pretrained: models.Pretrained,
    params: Any,
    placement: shard.Placement,
    training: Training,
    rows: data.Batch,
    base: Mapping[str, Any],
) -> Lab:
    steps = training.duration.in_steps(batch_size=training.batch_size, length=training.length, rows=len(rows.tokens))
    return Lab(
        pretrained=pretrained,
        params=params,
        placement=placement,
        measurement=measure.held_out_text(pretrained.model, text.token_bytes_V),
        held_out={name: [shard.put(b, placement.batch) for b in some] for name, some in text.held_out.items()},
        train=rows,
        training=training,
        total_steps=steps,
        provenance={"base": origin(pretrained), "corpora": text.corpora},
        base=base,
    )
