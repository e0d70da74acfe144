"""What all members of a study share: the base on its devices, the text, and the probe over it."""

import logging
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from adaptlab import config, data, measure, models, shard
from adaptlab.study.settings import HeldOut, Training

__all__ = ["Lab", "open_base", "open_lab"]

log = logging.getLogger(__name__)


class Lab(NamedTuple):
    """Everything that is loaded once.

    Attributes:
      pretrained: the base model.
      params: its weights, on their devices.
      placement: the mesh and its rules.
      loss: the training loss.
      measurement: what is measured on held-out text.
      held_out: `{domain: batches}`, on their devices.
      train: the target's packed training rows.
      training: the settings.
      total_steps: the number of updates.
      provenance: what the passport says of base and corpora.
    """

    pretrained: models.Pretrained
    params: Any
    placement: shard.Placement
    loss: Any
    measurement: measure.Measurement
    held_out: dict[str, list[data.Batch]]
    train: data.Batch
    training: Training
    total_steps: int
    provenance: dict[str, Any]

    def batches(self, seed: int) -> Callable[[int], data.Batch]:
        """Return `step -> batch` of a member's training text, on its devices."""
        share = (jax.process_index(), jax.process_count())
        stream = data.make_stream(self.train, self.training.batch_size, seed, "train", *share)
        return lambda step: self._put(stream(step))

    def _put(self, batch: data.Batch) -> data.Batch:
        return jax.device_put(batch, self.placement.batch)


def open_base(base: Mapping[str, Any], mesh: jax.sharding.Mesh) -> tuple[models.Pretrained, shard.Placement, Any]:
    """Open a base and put its weights on the mesh."""
    pretrained = config.instantiate(base["model"])
    placement = shard.Placement(mesh, pretrained.model.axes())
    params = pretrained.load()
    return pretrained, placement, shard.place(params, placement.shardings(placement.axes, params))


def open_lab(
    base: Mapping[str, Any],
    target: Mapping[str, Any],
    upstream: Mapping[str, Mapping[str, Any]],
    training: Training,
    held_out: HeldOut,
    mesh: jax.sharding.Mesh,
) -> Lab:
    """Load the base and the text of a study.

    Args:
      base: the config of the base, see `Base`.
      target: the config of the corpus to adapt to.
      upstream: the configs of the corpora not to forget, by name.
      training: see `Training`.
      held_out: see `HeldOut`.
      mesh: the devices.
    """
    pretrained, placement, params = open_base(base, mesh)
    tokenizer = config.instantiate(base["tokenizer"])
    if training.length > pretrained.context:
        raise config.ConfigError(
            f"training.length={training.length} is longer than the {pretrained.context} tokens {pretrained.name} "
            f"was trained on."
        )

    def domain(node: Mapping[str, Any], max_train_tokens: int | None) -> data.Domain:
        return data.load_domain(
            config.instantiate(node),
            tokenizer,
            training.length,
            held_out=held_out.fraction,
            max_train_tokens=max_train_tokens,
            max_held_out_tokens=held_out.tokens,
            max_document_tokens=held_out.max_document_tokens,
        )

    goal = domain(target, training.max_tokens)
    kept = {name: domain(node, 0) for name, node in upstream.items()}
    if goal.name in kept:
        raise config.ConfigError(f"upstream.{goal.name} is also the target: what is trained on is not forgotten.")
    lab = Lab(
        pretrained=pretrained,
        params=params,
        placement=placement,
        loss=models.language_modelling(pretrained.model),
        measurement=measure.held_out_text(pretrained.model, tokenizer.token_bytes_V),
        held_out={},
        train=goal.train,
        training=training,
        total_steps=training.duration.in_steps(
            batch_size=training.batch_size, length=training.length, rows=len(goal.train.tokens)
        ),
        provenance={
            "base": {"name": pretrained.name, "sha256": pretrained.fingerprint},
            "corpora": {name: d.provenance for name, d in {goal.name: goal, **kept}.items()},
        },
    )
    for name, one in {goal.name: goal, **kept}.items():
        batches = data.fixed_batches(one.held_out, held_out.batch_size)
        lab.held_out[name] = [lab._put(batch) for batch in batches]
        counted = int(sum(np.sum(batch.weights) for batch in batches))
        log.info("%s: %d held-out tokens measured, %d rows to train on", name, counted, len(one.train.tokens))
    return lab
