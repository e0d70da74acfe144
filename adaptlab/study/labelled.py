"""The lab of a classification study: an encoder with a head over the task's classes, and texts it knew before."""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from adaptlab import config, data, measure
from adaptlab.study.lab import Lab, open_base, origin, trained_on

__all__ = ["Texts", "open_labelled_lab"]

log = logging.getLogger(__name__)


class Texts(NamedTuple):
    """How many texts are used.

    Attributes:
      train: of the task's to train on, a random sample that is always the same; None uses all.
      held_out: of its held-out ones; None measures all.
      upstream: of each upstream corpus's held-out documents.
      batch_size: texts per forward pass; similarities are those within a batch.
    """

    train: int | None = None
    held_out: int | None = None
    upstream: int = 128
    batch_size: int = 32


class _Rows(NamedTuple):
    tokens: np.ndarray
    segments: np.ndarray
    weights: np.ndarray


def open_labelled_lab(study: Any) -> Lab:
    """Load the base, the task and the upstream texts of a classification study.

    The task's domain is measured by `adaptlab.measure.held_out_labels`, an upstream corpus by
    `adaptlab.measure.sentence_similarity` against the base.

    Args:
      study: has `base` (see `Base`; an encoder), `task` (the config of a labelled corpus), `upstream` (those of plain
        corpora, by name), `training` (see `Training`; `max_tokens` has no meaning here), `texts` (see `Texts`) and
        `mesh`.

    Raises:
      ConfigError: rows longer than the base's context, `max_tokens`, or an upstream corpus with the task's name.
    """
    training, texts, mesh, task = (
        config.instantiate(getattr(study, name)) for name in ("training", "texts", "mesh", "task")
    )
    if training.max_tokens is not None:
        raise config.ConfigError(
            "training.max_tokens counts tokens of plain text; here texts.train says how many texts."
        )
    pretrained, placement, params = open_base(study.base, mesh, classes=len(task.classes))
    placement = trained_on(placement, training)
    if training.length > pretrained.context:
        raise config.ConfigError(
            f"training.length={training.length} is longer than the {pretrained.context} tokens {pretrained.name} "
            "was trained on."
        )
    tokenizer = config.instantiate(study.base["tokenizer"])
    rows = data.load_labelled(task, tokenizer, training.length, texts.train, texts.held_out)
    kinds = {
        data.LabelledBatch: measure.held_out_labels(pretrained.model, len(task.classes)),
        measure.Sentences: measure.sentence_similarity(pretrained.model),
    }
    lab = Lab(
        pretrained=pretrained,
        params=params,
        placement=placement,
        measurement=measure.by_kind(kinds),
        held_out={},
        train=rows.train,
        training=training,
        total_steps=training.duration.in_steps(
            batch_size=training.batch_size, length=training.length, rows=len(rows.train.tokens)
        ),
        provenance={"base": origin(pretrained), "corpora": {rows.name: rows.provenance}},
        base=study.base,
    )
    held_out = data.fixed_batches(rows.held_out, texts.batch_size)
    lab.held_out[rows.name] = [lab.put(batch) for batch in held_out]
    log.info(
        "%s: %d classes, %d texts to train on, %d held out",
        *(rows.name, len(rows.classes), len(rows.train.tokens), len(rows.held_out.tokens)),
    )
    for name, node in study.upstream.items():
        if name == rows.name:
            raise config.ConfigError(f"upstream.{name} is also the task: what is trained on is not forgotten.")
        _add_upstream(lab, name, node, tokenizer, texts)
    return lab


def _add_upstream(lab: Lab, name: str, node: Mapping[str, Any], tokenizer: data.Tokenizer, texts: Texts) -> None:
    """Measure a corpus's held-out documents against what the base makes of them."""
    corpus = data.split(config.instantiate(node)).held_out
    documents = corpus.documents[: texts.upstream]
    tokens, segments = data.padded_rows(documents, tokenizer, lab.training.length)
    model = lab.pretrained.model
    embed = jax.jit(lambda params, batch: measure.sentence_embeddings(model, params, batch.tokens, batch.segments))
    batches = data.fixed_batches(_Rows(tokens, segments, np.ones(len(tokens), np.float32)), texts.batch_size)
    on_device = [lab.put(batch) for batch in batches]
    lab.held_out[name] = [measure.Sentences(b.tokens, b.segments, b.weights, embed(lab.params, b)) for b in on_device]
    lab.provenance["corpora"][name] = {
        "name": corpus.name,
        "digest": corpus.digest,
        "licence": corpus.licence,
        "origin": corpus.origin,
        "documents_used": len(documents),
    }
    log.info("%s: the similarities of %d held-out documents", name, len(documents))
