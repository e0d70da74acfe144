"""The two tables of the laws. A new model or adaptation is one row more; every law then holds for it, or fails.

The models are tiny, but nothing about them is special: two layers, so that stacks are stacks, and sizes that are all
different, so that no axis can be taken for another (and even, so that a mesh divides them).
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import tree
from adaptlab.adapt import (
    Adaptation,
    adalora,
    bitfit,
    chain,
    diff_pruning,
    dora,
    fisher_masked,
    freeze_below,
    frozen,
    full,
    layer_norm,
    lora,
    partition,
    pissa,
    quantization_aware,
    random_subspace,
    selected,
    share,
    vera,
    weighted,
)
from adaptlab.data import Batch
from adaptlab.models import (
    LlamaShape,
    Model,
    Quantization,
    cross_entropy,
    language_modelling,
    llama,
    mlp,
    quantize,
)
from adaptlab.stats import Mean
from tests.laws import encoders, slots

ROWS, LENGTH, VOCABULARY, RANK = 8, 6, 32, 2


class ModelRow(NamedTuple):
    """A model, how it is trained, and which of its paths the adaptations mean."""

    model: Model
    loss: Callable[[Any, Any, jax.Array], Mean]
    outputs: Callable[[Any, Any], jax.Array]
    batch: Callable[[int], Any]
    matrices: str
    some_matrices: str
    vectors: str
    embedding: str | None = None


class AdaptationRow(NamedTuple):
    """An adaptation for a model, and the number of parameters it must train there.

    `count` maps `{path: shape}` of the base to the formula; it selects paths in its own way. `only` names the models
    that have what it adapts; empty is all.
    """

    make: Callable[[ModelRow, Any], Adaptation]
    count: Callable[[dict[str, tuple[int, ...]]], int]
    needs_embedding: bool = False
    hears_alpha: bool | None = None  # None: if it trains an A, as LoRA does
    not_the_base: str = ""  # why it does not start as the base: skips that law
    not_a_gradient: str = ""  # why what trains is not the gradient of the loss: skips the law of the Hessian
    not_an_array: str = ""  # why it cannot be merged: skips those laws
    only: tuple[str, ...] = ()
    base: Callable[[ModelRow, Any], Any] = lambda m, base: base  # what of the model's weights it adapts


class Pairs(NamedTuple):
    """A batch for a classifier."""

    inputs: Any
    targets: Any
    weights: Any


def on_device(batch: Any) -> Any:
    return jax.device_put(batch)


def text_batch(seed: int) -> Batch:
    """Packed rows: two segments and some padding, positions that restart, targets that do not count."""
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(1, VOCABULARY, (2, ROWS, LENGTH), np.int32)
    segments = np.sort(rng.integers(1, 3, (ROWS, LENGTH), np.int32), axis=1)
    segments[1, -2:] = 0
    starts = np.argmax(segments == 2, axis=1)[:, None]
    positions = np.where(segments == 2, np.arange(LENGTH) - starts, np.arange(LENGTH)).astype(np.int32)
    weights = (segments > 0) * (rng.random((ROWS, LENGTH)) < 0.8)
    return on_device(Batch(tokens, targets, segments, positions, weights.astype(np.float32)))


def pairs_batch(seed: int) -> Pairs:
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(ROWS, 6)).astype(np.float32)
    return on_device(Pairs(inputs, rng.integers(0, 4, ROWS, np.int32), np.ones(ROWS, np.float32)))


def classification(model: Model) -> Callable[[Any, Any, jax.Array], Mean]:
    def loss(params: Any, batch: Pairs, key: jax.Array) -> Mean:
        nats = cross_entropy(model.apply(params, batch.inputs), batch.targets)
        return Mean(jnp.sum(nats * batch.weights), jnp.sum(batch.weights))

    return loss


def text_row(**sizes: Any) -> ModelRow:
    model = llama(LlamaShape(VOCABULARY, width=16, depth=2, heads=4, head_width=6, ffn_width=20, **sizes))
    return ModelRow(
        model,
        language_modelling(model),
        lambda params, batch: model.apply(params, batch.tokens, segments=batch.segments, positions=batch.positions),
        text_batch,
        matrices="layers/.*/kernel",
        some_matrices="layers/attention/.*/kernel",
        vectors=".*/scale",
        embedding="embed/embedding",
    )


def pairs_row(*widths: int) -> ModelRow:
    model = mlp(widths)
    return ModelRow(
        model,
        classification(model),
        lambda params, batch: model.apply(params, batch.inputs),
        pairs_batch,
        matrices=".*/kernel",
        some_matrices="dense_1/kernel",
        vectors=".*/bias",
    )


MODELS = {
    "llama_tied": text_row(kv_heads=4, tied=True),
    "llama_untied_gqa": text_row(kv_heads=2, tied=False),
    "mlp": pairs_row(6, 10, 8, 4),
    **encoders.rows(ModelRow, text_batch, ROWS, LENGTH, VOCABULARY),
}


def low_rank(shapes: dict[str, tuple[int, ...]], prefixes: tuple[str, ...], rank: int = RANK) -> int:
    """Σ L · R · (D + F) over the kernels `[*L, D, F]` below the prefixes."""
    chosen = [shape for path, shape in shapes.items() if path.startswith(prefixes) and path.endswith(MATRIX)]
    return sum(math.prod(shape[:-2]) * rank * (shape[-2] + shape[-1]) for shape in chosen)


MATRIX = ("/kernel", "/embedding")
BODY = ("layers/", "dense_")
SOME = ("layers/attention/", "dense_1/")


def outputs(shapes: dict[str, tuple[int, ...]], prefixes: tuple[str, ...], more: int = 0) -> int:
    """Σ L · (F + more) over the kernels `[*L, D, F]` below the prefixes."""
    chosen = [shape for path, shape in shapes.items() if path.startswith(prefixes) and path.endswith(MATRIX)]
    return sum(math.prod(shape[:-2]) * (shape[-1] + more) for shape in chosen)


def every(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def below(shapes: dict[str, tuple[int, ...]], prefix: str | tuple[str, ...]) -> int:
    return every({path: shape for path, shape in shapes.items() if path.startswith(prefix)})


def in_four_bits(m: ModelRow, base: Any) -> Any:
    """The base with its matrices in doubly quantised nf4; blocks of 2 fit all sizes."""
    return on_device(quantize(jax.device_get(base), Quantization("nf4", select=m.matrices, block=2)))


def every_third(model: Model) -> Any:
    """A mask that chooses unequally many places of two layers: no layer is full of them."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return jax.tree.map(lambda x: np.arange(0, math.prod(x.shape), 3, dtype=np.int32), shapes)


def vectors(shapes: dict[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for path, shape in shapes.items() if not path.endswith(MATRIX))


ADAPTATIONS = {
    "full": AdaptationRow(lambda m, alpha: full(), every),
    "frozen": AdaptationRow(lambda m, alpha: frozen(), lambda shapes: 0),
    "lora": AdaptationRow(
        lambda m, alpha: lora(RANK, alpha=alpha, select=m.matrices), lambda shapes: low_rank(shapes, BODY)
    ),
    "lora_rank_stabilised": AdaptationRow(
        lambda m, alpha: lora(3, alpha=alpha, select=m.matrices, scaling="rank_stabilised"),
        lambda shapes: low_rank(shapes, BODY, rank=3),
    ),
    "lora_layer_ranks": AdaptationRow(
        lambda m, alpha: lora(RANK, alpha=alpha, layer_ranks=[2.0, 1.0], select=m.matrices),
        lambda shapes: low_rank(shapes, BODY) * 3 // 4,  # the second layer's other rank is stored, and does not train
        only=("llama_untied_gqa",),
    ),
    "lora_some": AdaptationRow(
        lambda m, alpha: lora(RANK, alpha=alpha, select=m.some_matrices), lambda shapes: low_rank(shapes, SOME)
    ),
    "pissa": AdaptationRow(
        lambda m, alpha: pissa(RANK, alpha=alpha, select=m.matrices), lambda shapes: low_rank(shapes, BODY)
    ),
    "dora": AdaptationRow(
        lambda m, alpha: dora(RANK, alpha=alpha, select=m.matrices, detach_norm=False),
        lambda shapes: low_rank(shapes, BODY) + outputs(shapes, BODY),
    ),
    "dora_detached": AdaptationRow(
        lambda m, alpha: dora(RANK, alpha=alpha, select=m.matrices),
        lambda shapes: low_rank(shapes, BODY) + outputs(shapes, BODY),
        not_a_gradient="The norm of the direction is a constant to derivatives.",
    ),
    "vera": AdaptationRow(
        lambda m, alpha: vera(5, d_initial=alpha, select=m.matrices),
        lambda shapes: outputs(shapes, BODY, more=5),
        hears_alpha=True,
    ),
    "adalora": AdaptationRow(
        lambda m, alpha: adalora(RANK, alpha=alpha, select=m.matrices, stddev=0.5),
        lambda shapes: low_rank(shapes, BODY) + outputs(shapes, BODY, more=RANK) - outputs(shapes, BODY),
        hears_alpha=True,
    ),
    "qlora": AdaptationRow(
        lambda m, alpha: lora(RANK, alpha=alpha, select=m.matrices),
        lambda shapes: low_rank(shapes, BODY),
        only=("llama_untied_gqa", "mlp", "mixtral"),
        base=in_four_bits,
    ),
    "random_subspace": AdaptationRow(
        lambda m, alpha: random_subspace(11, select=m.matrices, structure_aware=True), lambda shapes: 11
    ),
    "quantization_aware": AdaptationRow(
        lambda m, alpha: quantization_aware(full(), "nf4", block=2, select=m.matrices),
        every,
        only=("llama_untied_gqa", "mlp"),
        not_the_base="It starts as the quantised base.",
    ),
    "quantization_aware_lora": AdaptationRow(
        lambda m, alpha: quantization_aware(
            lora(RANK, alpha=alpha, select=m.matrices), "int8", block=0, select=m.matrices
        ),
        lambda shapes: low_rank(shapes, BODY),
        only=("mlp",),
        not_the_base="It starts as the quantised base.",
    ),
    "lora_embedding": AdaptationRow(
        lambda m, alpha: lora(RANK, alpha=alpha, select=[m.matrices, m.embedding or ""]),
        lambda shapes: low_rank(shapes, (*BODY, "embed/")),
        needs_embedding=True,
    ),
    "partition": AdaptationRow(
        lambda m, alpha: partition(
            {m.some_matrices: lora(RANK, alpha=alpha, select=".*"), m.vectors: full(), ".*": frozen()}
        ),
        lambda shapes: low_rank(shapes, SOME) + vectors(shapes),
    ),
    "selected": AdaptationRow(
        lambda m, alpha: selected([m.some_matrices, m.vectors]),
        lambda shapes: below(shapes, "dense_1/kernel") + vectors(shapes),
        only=("mlp",),
    ),
    "bitfit": AdaptationRow(lambda m, alpha: bitfit(), vectors, only=("mlp",)),
    "layer_norm": AdaptationRow(lambda m, alpha: layer_norm(), vectors, only=("llama_untied_gqa",)),
    "freeze_below": AdaptationRow(
        lambda m, alpha: freeze_below(1),
        # One of the two layers, the final norm and the head.
        lambda shapes: below(shapes, "layers/") // 2 + below(shapes, ("norm/", "head/")),
        only=("llama_untied_gqa",),
    ),
    "chain": AdaptationRow(
        lambda m, alpha: chain(
            [selected(m.vectors), lora(RANK, alpha=alpha, select=m.matrices), lora(1, select=m.some_matrices)]
        ),
        lambda shapes: vectors(shapes) + low_rank(shapes, BODY) + low_rank(shapes, SOME, rank=1),
        only=("llama_tied", "mlp"),
    ),
    "weighted": AdaptationRow(
        lambda m, alpha: weighted(
            {
                "first": share(lora(RANK, select=m.matrices), weight=alpha / 6),
                "second": lora(1, select=m.some_matrices),
                "third": share(selected(m.vectors), weight=0.5),
            }
        ),
        lambda shapes: low_rank(shapes, BODY) + low_rank(shapes, SOME, rank=1) + vectors(shapes),
        only=("llama_tied", "mlp"),
    ),
    "fisher_masked": AdaptationRow(
        lambda m, alpha: fisher_masked(every_third(m.model)),
        lambda shapes: sum(-(-math.prod(shape) // 3) for shape in shapes.values()),
        only=("llama_tied", "mlp"),
    ),
    "diff_pruning": AdaptationRow(
        lambda m, alpha: diff_pruning(log_alpha=0.2),
        lambda shapes: 2 * every(shapes),  # w and log α
        only=("llama_tied",),
    ),
    "diff_pruning_by_output": AdaptationRow(
        lambda m, alpha: diff_pruning(m.matrices, structure="output", log_alpha=0.2),
        lambda shapes: sum(2 * math.prod(s) + s[-1] for p, s in shapes.items() if p.endswith("/kernel")),
        only=("mlp",),
    ),
}

ADAPTATIONS |= slots.rows(AdaptationRow) | encoders.adaptations(AdaptationRow)


REPEATED = {
    *(("llama_tied", name) for name in ("frozen", "lora_rank_stabilised", "lora_some", "partition")),
    *(("llama_untied_gqa", name) for name in ("lora_rank_stabilised", "lora_some", "lora_embedding")),
    *(("llama_untied_gqa", name) for name in ("pissa", "dora", "dora_detached", "vera", "adalora", "random_subspace")),
    ("llama_tied", "random_subspace"),  # the dearest to compile
    *encoders.repeated(ADAPTATIONS),
    *slots.REPEATED,
}
"""Cells that run with `slow` only: the two Llamas differ in their heads alone, and these LoRAs in a number or a pattern
from one that runs on them; the multilayer perceptron runs them all."""


class Case(NamedTuple):
    """One cell: a model with a base of full-size weights, and an adaptation of it.

    `base` is what the adaptation makes of `plain` before training: in most cells the same.
    """

    row: ModelRow
    adaptation_row: AdaptationRow
    plain: Any
    base: Any

    def adaptation(self, alpha: Any = 3.0) -> Adaptation:
        return self.adaptation_row.make(self.row, alpha)


def scattered(tree_: Any, seed: int, scale: float = 0.3) -> Any:
    """The tree plus normal noise in every element: a point where nothing is zero by construction."""

    def noisy(path: str, x: Any) -> jax.Array:
        rng = np.random.default_rng([seed, *path.encode()])
        return jnp.asarray(x + scale * rng.normal(size=x.shape), x.dtype)

    return tree.map_with_path(noisy, tree_)


def cases() -> Iterator[Any]:
    for model_name, model in MODELS.items():
        base = scattered(jax.jit(model.model.init)(jax.random.key(0)), 0)
        for name, adaptation in ADAPTATIONS.items():
            if (model.embedding or not adaptation.needs_embedding) and model_name in (adaptation.only or MODELS):
                marks = [pytest.mark.slow] if (model_name, name) in REPEATED else []
                plain = adaptation.base(model, base)
                yield pytest.param(Case(model, adaptation, plain, plain), id=f"{name}-{model_name}", marks=marks)
