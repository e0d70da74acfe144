"""Training for a quantised use."""

from collections.abc import Sequence
from typing import Any, Literal

import jax

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import Adaptation
from adaptlab.adapt.matrices import matrix_shape, targets
from adaptlab.leaf.codes import bits

__all__ = ["quantization_aware"]


def quantization_aware(
    inner: Adaptation,
    scheme: Literal["nf4", "fp4", "int8", "dynamic8"] = "int8",
    *,
    block: int = 0,
    select: str | Sequence[str] = "layers/.*/kernel",
) -> Adaptation:
    """Train so that rounding the weights afterwards costs nothing (quantisation-aware training, arXiv:1712.05877).

    The forward pass reads Q(w), w quantised and back, where `inner` adapts w; the backward pass takes Q for the
    identity (straight-through, arXiv:1308.3432). It starts as the *quantised* base. Its merged weights are fixed points
    of the rounding (of nf4, fp4 and int8): `adaptlab.models.quantize` with the same scheme and block, without double
    quantisation, changes nothing about them. Other than in arXiv:1712.05877, activations and biases are not rounded,
    and each block's range is its own, not learned. Trains what `inner` trains.

    Args:
      inner: what trains, e.g. `full()` or `lora()`.
      scheme: the code, see `adaptlab.models.Quantization`.
      block: weights per scale; 0 gives each output (or row of an `embedding`) one.
      select: patterns of the matrices to round.

    Raises:
      ValueError: an unknown scheme; when bound, a pattern that matches nothing, a leaf that is no matrix, or a block
        that does not divide its rows.
    """
    bits(scheme)  # raises for an unknown one

    def rounded(params: Any) -> Any:
        chosen = targets(tree.flatten(params, leaf.is_node), select)

        def node(path: str, w: Any) -> Any:
            if path not in chosen:
                return w
            matrix_shape(path, w, "quantization_aware")
            return leaf.FakeQuantized(w, scheme, block or None, not path.endswith("embedding"))

        return tree.map_with_path(node, params, is_leaf=leaf.is_node)

    def sample(base: Any, delta: Any, key: jax.Array) -> Any:
        assert inner.sample is not None
        return rounded(inner.sample(base, delta, key))

    return inner._replace(
        bind=lambda base, delta: rounded(inner.bind(base, delta)),
        sample=None if inner.sample is None else sample,
    )
