"""Prefix tuning: trained keys and values in front of every layer's own."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from jax import lax

from adaptlab import leaf
from adaptlab.adapt.adaptation import Adaptation
from adaptlab.adapt.lora import zeros
from adaptlab.adapt.slots import Part, below, bind_slots, choose_slots, init_parts, normal, part_axes, uniform
from adaptlab.config import GIVEN

__all__ = ["prefix"]

_SHARED = "prefix"


def prefix(
    length: int = 16,
    *,
    reparametrise: int | None = None,
    deviation: float = 0.02,
    select: str | Sequence[str] = ".*",
    slots: Annotated[Mapping[str, Any], GIVEN],
) -> Adaptation:
    """Keys and values that every query of every layer sees in front of the sequence's (arXiv:2101.00190, eq. 3).

    Attention becomes softmax(q [K_P; K]ᵀ / √K) [V_P; V] with trained K_P and V_P `[L, P, G, K]`: 2 L P G K parameters.
    The prefix takes the first P positions, so that the text's first token has position P (sec. 4.1). In a model with
    rotary positions the trained keys are the rotated ones.

    With `reparametrise`, a network makes them of one smaller table (sec. 4.3): [K_P; V_P]_l = tanh(E U + b) W_l + b_l
    with E `[P, G K]`, U `[G K, W]` and, for each layer l, W_l `[W, 2, G, K]`. It trains P G K + G K W + W +
    2 L G K (W + 1) parameters.

    It does not start as the base: whatever its keys, a prefix takes a positive share of every softmax. The paper starts
    from the activations of real words; here keys and values start from small noise, so that the first share is that of
    P tokens of average score.

    Args:
      length: P, the number of positions.
      reparametrise: W, the network's hidden width; None trains keys and values themselves.
      deviation: the standard deviation of the first keys and values; with a network, its E has deviation 1.
      select: patterns of whole slot paths.
      slots: what the model declares.

    Raises:
      ValueError: a length or width below 1, a model without prefix slots, or a pattern that matches none.
    """
    if length < 1 or (reparametrise is not None and reparametrise < 1):
        raise ValueError(f"length={length} and reparametrise={reparametrise} must each be at least 1.")
    chosen = choose_slots(slots, "prefix", select, "prefix")
    if reparametrise is None:
        parts = _keys_and_values(chosen, length, deviation)
    else:
        parts = _network(chosen, length, reparametrise)

    def bind(base: Any, delta: Any) -> Any:
        if reparametrise is None:
            return bind_slots(base, {path: leaf.Prefix(**below(delta, path)) for path in chosen})
        shared = delta[_SHARED]
        hidden = jnp.tanh(leaf.product(shared["table"], shared["kernel"]) + shared["bias"][None])
        return bind_slots(base, {path: _made(hidden, **below(delta, path)) for path in chosen})

    return Adaptation(lambda key, base: init_parts(key, parts), bind, lambda base_axes: part_axes(parts))


def _keys_and_values(chosen: Mapping[str, Any], length: int, deviation: float) -> dict[str, Part]:
    parts = {}
    for path, slot in chosen.items():
        *lead, g, k = slot.shape
        *lead_axes, g_axis, k_axis = slot.axes
        one = Part((*lead, length, g, k), (*lead_axes, None, g_axis, k_axis), normal(deviation))
        parts |= {f"{path}/keys": one, f"{path}/values": one}
    return parts


def _network(chosen: Mapping[str, Any], length: int, width: int) -> dict[str, Part]:
    *_, g, k = next(iter(chosen.values())).shape
    parts = {
        f"{_SHARED}/table": Part((length, g * k), (None, None), normal()),
        f"{_SHARED}/kernel": Part((g * k, width), (None, "bottleneck"), uniform(g * k)),
        f"{_SHARED}/bias": Part((width,), ("bottleneck",), zeros()),
    }
    for path, slot in chosen.items():
        *lead, g, k = slot.shape
        *lead_axes, g_axis, k_axis = slot.axes
        outputs, output_axes = (2, g, k), (None, g_axis, k_axis)
        shape, axes = (*lead, width, *outputs), (*lead_axes, "bottleneck", *output_axes)
        parts[f"{path}/kernel"] = Part(shape, axes, uniform(width))
        parts[f"{path}/bias"] = Part((*lead, *outputs), (*lead_axes, *output_axes), zeros())
    return parts


def _made(hidden_PW: jax.Array, kernel: jax.Array, bias: jax.Array) -> leaf.Prefix:
    """Keys and values of every layer from the hidden rows: kernel `[*L, W, 2, G, K]`, bias `[*L, 2, G, K]`."""
    both = jnp.einsum("pw,...wcgk->c...pgk", hidden_PW, kernel, precision=lax.Precision.HIGHEST)
    keys, values = both + jnp.moveaxis(bias, -3, 0)[..., None, :, :]
    return leaf.Prefix(keys, values)
