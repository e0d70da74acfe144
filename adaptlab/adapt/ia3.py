"""Scaling of activations by learned vectors."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import Adaptation, axes_of

__all__ = ["ia3"]

_KERNEL = "/kernel"


def ia3(
    *,
    output: str | Sequence[str] | None = "layers/attention/(key|value)/kernel",
    input: str | Sequence[str] | None = "layers/feed_forward/down/kernel",
) -> Adaptation:
    """Scale keys, values and the feed-forward's activations by (1 + δ) (IA3, arXiv:2205.05638, sec. 3.3).

    A kernel W `[*L, D, F]` becomes W diag(1 + δ_output) or diag(1 + δ_input) W: x W is scaled after or before. The
    paper's l is 1 + δ, and δ starts at zero, so that the adapted model starts as the base and weight decay holds it
    there. A bias beside a kernel whose output is scaled is scaled with it. Trains F parameters a matrix of `output`
    and D one of `input`.

    Args:
      output: patterns of whole paths of kernels whose outputs are scaled, or None.
      input: patterns of those whose inputs are scaled, or None. A kernel may be in both.

    Raises:
      ValueError: neither is given, a pattern matches nothing, or a leaf that is not a kernel is selected.
    """
    if output is None and input is None:
        raise ValueError("ia3(output=None, input=None) scales nothing; use frozen() to train nothing.")

    def ends(flat: dict[str, Any]) -> dict[str, dict[str, int]]:
        """Return `{path: {"input": its axis, "output": its axis}}` of what is scaled."""
        chosen: dict[str, dict[str, int]] = {}
        for name, patterns, axis in (("input", input, -2), ("output", output, -1)):
            for path in [p for p, i in tree.select(flat, patterns).items() if i is not None] if patterns else ():
                if not path.endswith(_KERNEL):
                    raise ValueError(f"ia3 selects {path!r}, which is not a kernel; narrow `{name}`.")
                chosen.setdefault(path, {})[name] = axis
        return chosen

    def init(key: jax.Array, base: Any) -> Any:
        flat, delta = tree.flatten(base, leaf.is_node), {}
        for path, names in ends(flat).items():
            *lead, d, f = jax.eval_shape(leaf.dense, flat[path]).shape
            delta[path] = {name: jnp.zeros((*lead, (d, f)[axis])) for name, axis in names.items()}
        return tree.unflatten(delta)

    def bind(base: Any, delta: Any) -> Any:
        factors = {path: 1.0 + x for path, x in tree.flatten(delta).items()}

        def node(path: str, w: Any) -> Any:
            kernel = path.removesuffix("/bias") + _KERNEL if path.endswith("/bias") else path
            before, after = factors.get(f"{kernel}/input"), factors.get(f"{kernel}/output")
            if kernel != path:
                return w if after is None else leaf.dense(w) * after
            return w if before is None and after is None else leaf.Scaled(w, before, after)

        return tree.map_with_path(node, base, is_leaf=leaf.is_node)

    def axes(base_axes: Any) -> Any:
        flat, delta = axes_of(base_axes), {}
        for path, names in ends(flat).items():
            *lead, d, f = flat[path]
            delta[path] = {name: (*lead, (d, f)[axis]) for name, axis in names.items()}
        return tree.unflatten(delta)

    return Adaptation(init, bind, axes)
