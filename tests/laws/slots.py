"""The rows of the laws' table for what adds computation at slots, scales activations or trains tokens."""

import math
from typing import Any

from adaptlab.adapt import bottleneck, ia3

Shapes = dict[str, tuple[int, ...]]
R = 2

ADDED = "It adds computation that no array of the base could do."
IN_FRONT = "What stands in front of a sequence takes part of the attention from the start."
LLAMA = ("llama_untied_gqa",)
SLOTTED: dict[str, Any] = {"only": LLAMA, "not_an_array": ADDED}


def bottlenecks(slots_a_layer: int) -> Any:
    """L · (2 D R + R + D) a slot."""

    def count(shapes: Shapes) -> int:
        depth, d = shapes["layers/attention_norm/scale"]
        return slots_a_layer * depth * (2 * d * R + R + d)

    return count


def scaled_ends(shapes: Shapes) -> int:
    """Σ L · F over all kernels `[*L, D, F]`, and Σ L · D over some."""
    ends = ((("layers/", "dense_"), -1), (("layers/attention/", "dense_1/"), -2))
    return sum(
        math.prod(shape[:-2]) * shape[axis]
        for prefixes, axis in ends
        for path, shape in shapes.items()
        if path.startswith(prefixes) and path.endswith("/kernel")
    )


def rows(row: Any) -> dict[str, Any]:
    """Return `{name: row}`; `row` is `AdaptationRow`."""
    return {
        "ia3": row(lambda m, alpha: ia3(output=m.matrices, input=m.some_matrices), scaled_ends, only=("mlp", *LLAMA)),
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
    }
