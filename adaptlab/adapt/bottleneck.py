"""Bottleneck adapters: a small network beside or behind a sub-layer."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import jax.numpy as jnp

from adaptlab import leaf
from adaptlab.adapt.adaptation import Adaptation
from adaptlab.adapt.lora import Init, fan_in_uniform, zeros
from adaptlab.adapt.slots import Part, below, bind_slots, choose_slots, init_parts, part_axes
from adaptlab.config import GIVEN, Traced

__all__ = ["bottleneck", "check_bottleneck", "placement_of"]

PLACEMENTS = {
    "houlsby": ".*",
    "pfeiffer": "(.*/)?feed_forward_adapter",
    "parallel": "(.*/)?feed_forward_adapter",
}


def bottleneck(
    width: int = 64,
    *,
    placement: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby",
    activation: str = "gelu",
    scale: Traced = 1.0,
    select: str | Sequence[str] | None = None,
    init_down: Init | None = None,
    slots: Annotated[Mapping[str, Any], GIVEN],
) -> Adaptation:
    """Adapters y + s · (f(h W_down + b_down) W_up + b_up) at the model's residual slots.

    y `[B, T, D]` is what a sub-layer adds to the residual stream. In series h = y (Houlsby et al., arXiv:1902.00751,
    fig. 2); in parallel h is the sub-layer's own input (He et al., arXiv:2110.04366, table 1). Trains 2 D R + R + D
    parameters a slot and layer.

    W_up and both biases start at zero, so that the adapted model starts as the base exactly; Houlsby et al. start
    near it instead, from normal W of deviation 0.01. In models that normalise before a sub-layer the adapter
    reads the sub-layer's output before it joins the residual stream; the layer norms are not trained.

    Args:
      width: R, the bottleneck's width.
      placement: "houlsby" is in series behind every sub-layer, "pfeiffer" behind the feed-forward only
        (arXiv:2005.00247, app. A), "parallel" beside the feed-forward only.
      activation: f, a name in `adaptlab.leaf.ACTIVATIONS`.
      scale: s; He et al. take 4 in parallel.
      select: patterns of whole slot paths, e.g. `"layers/attention_adapter"`; None is the placement's.
      init_down: `(key, shape) -> W_down`; by default `fan_in_uniform()`.
      slots: what the model declares.

    Raises:
      ValueError: a width below 1, an unknown placement or activation, a model without residual slots, or a pattern
        that matches none.
    """
    check_bottleneck(width, activation)
    chosen = choose_slots(slots, "residual", select or placement_of(placement), "bottleneck")
    parts = {
        f"{path}/{name}": one
        for path, slot in chosen.items()
        for name, one in _parts(slot, width, init_down or fan_in_uniform()).items()
    }

    def bind(base: Any, delta: Any) -> Any:
        def node(path: str, slot: Any) -> Any:
            factors = jnp.full(slot.shape[:-1], scale, jnp.float32)
            return leaf.Bottleneck(
                **below(delta, path), scale=factors, activation=activation, parallel=placement == "parallel"
            )

        return bind_slots(base, {path: node(path, slot) for path, slot in chosen.items()})

    return Adaptation(lambda key, base: init_parts(key, parts), bind, lambda base_axes: part_axes(parts))


def _parts(slot: Any, width: int, init_down: Init) -> dict[str, Part]:
    *lead, d = slot.shape
    *lead_axes, d_axis = slot.axes
    return {
        "down": Part((*lead, d, width), (*lead_axes, d_axis, "bottleneck"), init_down),
        "down_bias": Part((*lead, width), (*lead_axes, "bottleneck"), zeros()),
        "up": Part((*lead, width, d), (*lead_axes, "bottleneck", d_axis), zeros()),
        "up_bias": Part((*lead, d), (*lead_axes, d_axis), zeros()),
    }


def check_bottleneck(width: int, activation: str) -> None:
    """Check what every kind of bottleneck takes.

    Raises:
      ValueError: a width below 1, or an unknown activation.
    """
    if width < 1:
        raise ValueError(f"width={width} must be at least 1; use frozen() to train nothing.")
    if activation not in leaf.ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is not one of {sorted(leaf.ACTIVATIONS)}.")


def placement_of(name: str) -> str:
    """Return the pattern of a placement's slots.

    Raises:
      ValueError: an unknown placement.
    """
    if name not in PLACEMENTS:
        raise ValueError(f"placement={name!r} is not one of {sorted(PLACEMENTS)}.")
    return PLACEMENTS[name]
