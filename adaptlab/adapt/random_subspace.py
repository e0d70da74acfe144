"""Training in a random subspace: the measure of an objective's intrinsic dimension."""

import math
from collections.abc import Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import Adaptation
from adaptlab.adapt.matrices import matrix_shape, targets
from adaptlab.config import AtMost, Interval, Traced
from adaptlab.leaf.random import hashed
from adaptlab.rng import stream_id

__all__ = ["random_subspace"]


def random_subspace(
    dim: int = 1000,
    *,
    effective_dim: Annotated[Traced, Interval(1, ends="[)"), AtMost("dim")] | None = None,
    select: str | Sequence[str] = "layers/.*/kernel",
    structure_aware: bool = False,
    projection_seed: int = 0,
) -> Adaptation:
    """θ = θ₀ + P z with a trained z `[dim]` and a random frozen P (arXiv:1804.08838, eq. 2; DID of arXiv:2012.13255).

    θ are all selected matrices together. The smallest dim at which a run reaches 90% of what full fine-tuning gains is
    the intrinsic dimension of the objective. z starts at zero. P's columns have length 1 on average and are nearly
    orthogonal, so a step in z moves θ as far. P is made from the seed where it is used and never stored
    (`adaptlab.leaf.fastfood`).

    Args:
      dim: the number of parameters that train.
      effective_dim: at most `dim`: only so many train, so that runs of several dimensions share a program. None is all.
      select: patterns of the matrices' whole paths; leading axes (a stack of layers) are batch axes.
      structure_aware: θ = θ₀ + λ_l P z with a trained scale λ_l, from 1, for every layer l (SAID, arXiv:2012.13255,
        eq. 4). The scales count in `dim`. A layer is an index of the first leading axis; a matrix without one is a
        layer of its own.
      projection_seed: of P. It belongs to the adaptation, not to the run: a saved delta is bound to this P again.

    Raises:
      ValueError: fewer than one dimension (with `structure_aware`, besides the layers' scales), a pattern that matches
        nothing, or a selected leaf that is not a matrix.
    """
    if dim < 1:
        raise ValueError(f"dim={dim} must be at least 1; use frozen() to train nothing.")

    def shapes(base: Any) -> dict[str, tuple[int, ...]]:
        chosen = targets(tree.flatten(base, leaf.is_node), select)
        return {path: matrix_shape(path, w, "random_subspace") for path, w in chosen.items()}

    def init(key: jax.Array, base: Any) -> Any:
        del key  # nothing is drawn
        layers = len(_layers(shapes(base))) if structure_aware else 0
        if layers >= dim:
            raise ValueError(f"dim={dim} is taken up by the scales of {layers} layers; choose a larger one.")
        delta = {"z": jnp.zeros(dim - layers)}
        return {"subspace": delta | ({"layer_scale": jnp.ones(layers)} if structure_aware else {})}

    def bind(base: Any, delta: Any) -> Any:
        chosen, own = shapes(base), delta["subspace"]
        z, layers = own["z"], _layers(chosen)
        if effective_dim is not None:
            kept = effective_dim - (len(layers) if structure_aware else 0)
            z = jnp.where(jnp.arange(z.shape[0], dtype=jnp.float32) < kept, z, 0.0)
        # fastfood's columns have the length √(N/Q) for all N elements together.
        rows = max(2, 1 << (z.shape[0] - 1).bit_length())
        length = (rows / sum(map(math.prod, chosen.values()))) ** 0.5

        def node(path: str, w: Any) -> Any:
            if path not in chosen:
                return w
            lead = chosen[path][:-2]
            index = jnp.arange(math.prod(lead), dtype=jnp.uint32).reshape(lead)
            stream = hashed(projection_seed, jnp.full(lead, stream_id(path), jnp.uint32), index)
            gain = jnp.full(lead, length)
            if structure_aware:
                names = [(i,) for i in range(lead[0])] if lead else [(path,)]
                scale = own["layer_scale"][jnp.asarray([layers[name] for name in names])]
                gain = gain * scale.reshape(*lead[:1], *[1] * (len(lead) - 1))
            return leaf.Projected(w, jnp.broadcast_to(z, (*lead, *z.shape)), stream, gain)

        return tree.map_with_path(node, base, is_leaf=leaf.is_node)

    def axes(base_axes: Any) -> Any:
        own = {"z": (None,)} | ({"layer_scale": (None,)} if structure_aware else {})
        return {"subspace": own}

    def count(base: Any, delta: Any) -> int:
        return dim if effective_dim is None else min(dim, math.ceil(effective_dim))

    return Adaptation(init, bind, axes, count=count)


def _layers(shapes: dict[str, tuple[int, ...]]) -> dict[tuple[Any], int]:
    """Return the number of every layer: `(index,)` in a stack, `(path,)` of a matrix alone."""
    names = {(i,): None for shape in shapes.values() if len(shape) > 2 for i in range(shape[0])}
    names |= {(path,): None for path, shape in shapes.items() if len(shape) == 2}
    return {name: number for number, name in enumerate(names)}
