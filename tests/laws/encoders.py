"""The rows of the laws' table for BERT, GPT-2 and Mixtral, and which adaptations run on them by default."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from adaptlab.adapt import bottleneck, prefix, prompt, selected
from adaptlab.data import LabelledBatch
from adaptlab.models import BertShape, GPT2Shape, MixtralShape, bert_classifier, gpt2, mixtral
from adaptlab.models.losses import classification, language_modelling
from tests.laws import slots

CLASSES = 4
SIZES: dict[str, Any] = {"width": 16, "depth": 2, "heads": 4, "ffn_width": 20, "context": 12}

BERT = ("bert_classifier",)
DEFAULT = {
    "bert_classifier": ("full", "lora", "prompt_encoder"),
    "gpt2": ("lora_embedding",),
    "mixtral": (),
}
"""The adaptations that run on a model by default. What the first two add to the Llamas are biases, learned positions,
layer norms with a bias, an encoder's mask and a head over one vector a text; the other cells run with `slow`. What
Mixtral's experts add is in `tests/models/test_moe.py` and `test_mixtral.py`."""


def repeated(adaptations: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Return the cells of these models that run with `slow` only."""
    return {(model, name) for model, default in DEFAULT.items() for name in adaptations if name not in default}


def adaptations(row: Any) -> dict[str, Any]:
    """Return `{name: row}` of what is usual for a classifier; `row` is `AdaptationRow`."""
    return {
        "linear_probe": row(lambda m, alpha: selected("classifier/.*"), lambda shapes: ending(shapes, HEAD), only=BERT),
        "head_and_bitfit": row(
            lambda m, alpha: selected([".*/bias", "classifier/kernel"]),
            lambda shapes: ending(shapes, ("/bias", HEAD[0])),
            only=BERT,
        ),
        "prompt_encoder": row(
            lambda m, alpha: prompt(slots.P, slots=m.model.slots()), slots.prompts, **slots.FRONT | {"only": BERT}
        ),
        "prefix_encoder": row(
            lambda m, alpha: prefix(slots.P, slots=m.model.slots()), slots.prefixes, **slots.FRONT | {"only": BERT}
        ),
        "houlsby_encoder": row(
            lambda m, alpha: bottleneck(slots.R, scale=alpha, slots=m.model.slots()),
            slots.bottlenecks(2),
            hears_alpha=True,
            **slots.SLOTTED | {"only": BERT},
        ),
    }


HEAD = ("classifier/kernel", "classifier/bias")


def ending(shapes: slots.Shapes, ends: tuple[str, ...]) -> int:
    return sum(math.prod(shape) for path, shape in shapes.items() if path.endswith(ends))


def classes_batch(seed: int, rows: int, length: int, vocabulary: int) -> LabelledBatch:
    """Texts of all lengths, and a row that fills up the batch."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, length + 1, (rows, 1))
    segments = (np.arange(length) < lengths).astype(np.int32)
    tokens = rng.integers(1, vocabulary, (rows, length), np.int32) * segments
    weights = np.ones(rows, np.float32)
    weights[-1] = 0
    return jax.device_put(LabelledBatch(tokens, rng.integers(0, CLASSES, rows, np.int32), segments, weights))


def rows(row: Any, text_batch: Any, n_rows: int, length: int, vocabulary: int) -> dict[str, Any]:
    """Return `{name: row}`; `row` is `ModelRow`, `text_batch` a decoder's batches."""
    classifier = bert_classifier(BertShape(vocabulary, **SIZES), classes=CLASSES)
    decoder = gpt2(GPT2Shape(vocabulary, **SIZES))
    sizes = MixtralShape(vocabulary, 16, 2, 4, kv_heads=2, head_width=6, ffn_width=20, experts=4, active=2)
    experts = mixtral(sizes, capacity_factor=1.25)
    paths = {
        "matrices": "layers/.*/kernel",
        "some_matrices": "layers/attention/.*/kernel",
        "vectors": ".*/(scale|bias)",
        "embedding": "embed/embedding",
    }
    return {
        "bert_classifier": row(
            classifier,
            classification(classifier),
            lambda params, batch: classifier.apply(params, batch.tokens, segments=batch.segments),
            lambda seed: classes_batch(seed, n_rows, length, vocabulary),
            **paths,
        ),
        "gpt2": row(
            decoder,
            language_modelling(decoder),
            lambda params, batch: decoder.apply(
                params, batch.tokens, segments=batch.segments, positions=batch.positions
            ),
            text_batch,
            **paths,
        ),
        "mixtral": row(
            experts,
            language_modelling(experts, balance=0.1, router_z=0.01),
            lambda params, batch: experts.apply(
                params, batch.tokens, segments=batch.segments, positions=batch.positions
            ),
            text_batch,
            **paths | {"vectors": ".*/(scale|router)"},
        ),
    }
