"""The rows of the laws' table for what adds computation at slots, scales activations or trains tokens."""

import functools
import math
import tempfile
from pathlib import Path
from typing import Any

import jax

from adaptlab.adapt import bottleneck, compacter, fusion, ia3, p_tuning, prefix, prompt, save_delta, textual_inversion

Shapes = dict[str, tuple[int, ...]]
R, P, W = 2, 3, 5

ADDED = "It adds computation that no array of the base could do."
IN_FRONT = "What stands in front of a sequence takes part of the attention from the start."
LLAMA = ("llama_untied_gqa",)
SLOTTED: dict[str, Any] = {"only": LLAMA, "not_an_array": ADDED}
FRONT: dict[str, Any] = SLOTTED | {"not_the_base": IN_FRONT}

REPEATED = {
    *(("llama_untied_gqa", name) for name in ("ia3", "p_tuning", "prefix_reparametrised", "textual_inversion")),
}
"""Cells that run with `slow` only: another cell has the same node, or the same path to it."""


def bottlenecks(slots_a_layer: int) -> Any:
    """L · (2 D R + R + D) a slot."""

    def count(shapes: Shapes) -> int:
        depth, d = shapes["layers/attention_norm/scale"]
        return slots_a_layer * depth * (2 * d * R + R + d)

    return count


def compact_bottlenecks(shapes: Shapes) -> int:
    """N³ once, and L · (2 R (D + W) + W + D) a slot."""
    depth, d = shapes["layers/attention_norm/scale"]
    return 2**3 + 2 * depth * (2 * R * (d + 6) + 6 + d)


def scaled_ends(shapes: Shapes) -> int:
    """Σ L · F over all kernels `[*L, D, F]`, and Σ L · D over some."""
    ends = ((("layers/", "dense_"), -1), (("layers/attention/", "dense_1/"), -2))
    return sum(
        math.prod(shape[:-2]) * shape[axis]
        for prefixes, axis in ends
        for path, shape in shapes.items()
        if path.startswith(prefixes) and path.endswith("/kernel")
    )


def heads(shapes: Shapes) -> tuple[int, int]:
    """L and the width of all keys, G · K."""
    depth, _, width = shapes["layers/attention/key/kernel"]
    return depth, width


def prefixes(shapes: Shapes) -> int:
    """2 L P G K."""
    depth, width = heads(shapes)
    return 2 * depth * P * width


def made_prefixes(shapes: Shapes) -> int:
    """P G K + G K W + W + 2 L G K (W + 1)."""
    depth, width = heads(shapes)
    return P * width + width * W + W + 2 * depth * width * (W + 1)


def prompts(shapes: Shapes) -> int:
    """P D."""
    return P * shapes["embed/embedding"][1]


def made_prompts(shapes: Shapes) -> int:
    """P D + (D W + W) + (W W + W) + (W D + D)."""
    d = shapes["embed/embedding"][1]
    return P * d + (d * W + W) + (W * W + W) + (W * d + d)


def recurrent_prompts(shapes: Shapes) -> int:
    """P D, one layer of two LSTMs, and two linear maps."""
    d = shapes["embed/embedding"][1]
    return P * d + 2 * 4 * W * (d + W + 1) + (2 * W * 2 * W + 2 * W) + (2 * W * d + d)


@functools.cache
def saved_adapters(slots: tuple[tuple[str, Any], ...]) -> list[str]:
    """Files of two trained adapters, written once for all cells of a run."""
    folder, files = Path(tempfile.mkdtemp(prefix="adapters")), []
    for seed in range(2):
        config = {"_target_": "adaptlab.adapt.bottleneck", "width": R, "placement": "pfeiffer"}
        delta = bottleneck(R, placement="pfeiffer", slots=dict(slots)).init(jax.random.key(seed), {})
        delta = jax.tree.map(lambda x, s=seed: x + 0.3 * jax.random.normal(jax.random.key(s), x.shape), delta)
        files.append(str(folder / f"{seed}.safetensors"))
        save_delta(files[-1], delta, adapt=config, base="0" * 64)
    return files


def fusions(shapes: Shapes) -> int:
    """L · 3 D²."""
    depth, d = shapes["layers/attention_norm/scale"]
    return 3 * depth * d * d


def rows(row: Any) -> dict[str, Any]:
    """Return `{name: row}`; `row` is `AdaptationRow`."""
    return {
        "ia3": row(
            lambda m, alpha: ia3(output=m.matrices, input=m.some_matrices), scaled_ends, only=("mlp", "mixtral", *LLAMA)
        ),
        "houlsby": row(
            lambda m, alpha: bottleneck(R, scale=alpha, slots=m.model.slots()),
            bottlenecks(2),
            hears_alpha=True,
            **SLOTTED,
        ),
        "parallel_adapter": row(
            lambda m, alpha: bottleneck(R, placement="parallel", activation="relu", scale=alpha, slots=m.model.slots()),
            bottlenecks(1),
            hears_alpha=True,
            **SLOTTED,
        ),
        "compacter": row(
            lambda m, alpha: compacter(6, terms=2, rank=R, scale=alpha, slots=m.model.slots()),
            compact_bottlenecks,
            hears_alpha=True,
            **SLOTTED,
        ),
        "fusion": row(
            lambda m, alpha: fusion(
                saved_adapters(tuple(sorted(m.model.slots().items()))), temperature=alpha, slots=m.model.slots()
            ),
            fusions,
            hears_alpha=True,
            **SLOTTED,
            not_the_base="It starts as a mixture of adapters that are trained already.",
        ),
        "prefix": row(lambda m, alpha: prefix(P, slots=m.model.slots()), prefixes, **FRONT),
        "prefix_reparametrised": row(
            lambda m, alpha: prefix(P, reparametrise=W, slots=m.model.slots()), made_prefixes, **FRONT
        ),
        "prompt": row(lambda m, alpha: prompt(P, slots=m.model.slots()), prompts, **FRONT),
        "p_tuning": row(lambda m, alpha: p_tuning(P, width=W, slots=m.model.slots()), made_prompts, **FRONT),
        "p_tuning_lstm": row(
            lambda m, alpha: p_tuning(P, width=W, encoder="lstm", layers=1, slots=m.model.slots()),
            recurrent_prompts,
            **FRONT,
        ),
        "textual_inversion": row(
            lambda m, alpha: textual_inversion(range(1, 1 + P)), prompts, only=("llama_tied", *LLAMA)
        ),
    }
