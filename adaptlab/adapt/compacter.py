"""Compacter: bottleneck adapters whose matrices are sums of Kronecker products."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import jax.numpy as jnp

from adaptlab import leaf
from adaptlab.adapt.adaptation import Adaptation
from adaptlab.adapt.bottleneck import check_bottleneck, placement_of
from adaptlab.adapt.lora import Init, zeros
from adaptlab.adapt.slots import Part, below, bind_slots, choose_slots, init_parts, normal, part_axes, uniform
from adaptlab.config import GIVEN, Traced

__all__ = ["compacter"]

_RULES = "compacter/rules"


def compacter(
    width: int = 64,
    *,
    terms: int = 4,
    rank: int = 1,
    placement: Literal["houlsby", "pfeiffer", "parallel"] = "houlsby",
    activation: str = "gelu",
    scale: Traced = 1.0,
    select: str | Sequence[str] | None = None,
    slots: Annotated[Mapping[str, Any], GIVEN],
) -> Adaptation:
    """Bottleneck adapters with W = Σ_n A_n ⊗ (s_n t_n) for W_down `[D, W]` and W_up (arXiv:2106.04647, eqs. 3 to 5).

    The rules A `[N, N, N]`, the slow weights, are shared by all adapters of the model; s `[N, D/N, R]` and t
    `[N, R, W/N]` are each adapter's own. Trains N³ parameters, and 2 R (D + W) + W + D a slot and layer; a bottleneck
    of that width has 2 D W in place of 2 R (D + W).

    W_up's t starts at zero, so that the adapted model starts as the base. A, s and W_down's t start as random numbers
    of such sizes that W_down has the variance of `bottleneck`'s, which departs from the paper's fixed 0.01 for A.

    Args:
      width: W, the bottleneck's width, a multiple of N.
      terms: N, which divides D.
      rank: R of each term.
      placement: as in `bottleneck`; "houlsby" is Compacter and "pfeiffer" Compacter++.
      activation: a name in `adaptlab.leaf.ACTIVATIONS`.
      scale: the adapter's factor.
      select: patterns of whole slot paths; None is the placement's.
      slots: what the model declares.

    Raises:
      ValueError: sizes below 1, N that does not divide the widths, an unknown placement or activation, a model without
        residual slots, or a pattern that matches none.
    """
    check_bottleneck(width, activation)
    chosen = choose_slots(slots, "residual", select or placement_of(placement), "compacter")
    widths = {slot.shape[-1] for slot in chosen.values()}
    if min(terms, rank) < 1 or any(size % terms for size in (width, *widths)):
        raise ValueError(
            f"terms={terms} and rank={rank} must be at least 1, and terms must divide width={width} and the "
            f"model's {widths}."
        )
    parts = {_RULES: Part((terms, terms, terms), (None, None, None), normal(terms**-0.5))}
    for path, slot in chosen.items():
        parts |= {f"{path}/{name}": one for name, one in _parts(slot, width, terms, rank).items()}

    def bind(base: Any, delta: Any) -> Any:
        def node(path: str, slot: Any) -> Any:
            own, lead = below(delta, path), slot.shape[:-1]
            # Every layer of a stack gets its copy when the stack is sliced, and the gradient is the sum of theirs.
            rules = jnp.broadcast_to(below(delta, _RULES), (*lead, terms, terms, terms))
            return leaf.Bottleneck(
                leaf.KroneckerSum(rules, own["down_left"], own["down_right"]),
                own["down_bias"],
                leaf.KroneckerSum(rules, own["up_left"], own["up_right"]),
                own["up_bias"],
                jnp.full(lead, scale, jnp.float32),
                activation,
                placement == "parallel",
            )

        return bind_slots(base, {path: node(path, slot) for path, slot in chosen.items()})

    return Adaptation(lambda key, base: init_parts(key, parts), bind, lambda base_axes: part_axes(parts))


def _parts(slot: Any, width: int, terms: int, rank: int) -> dict[str, Part]:
    *lead, d = slot.shape
    *lead_axes, d_axis = slot.axes

    def factor(rows: int, columns: int, init: Init) -> Part:
        return Part((*lead, terms, rows, columns), (*lead_axes, None, None, None), init)

    return {
        "down_left": factor(d // terms, rank, uniform(d)),
        "down_right": factor(rank, width // terms, normal(rank**-0.5)),
        "down_bias": Part((*lead, width), (*lead_axes, "bottleneck"), zeros()),
        "up_left": factor(width // terms, rank, uniform(width)),
        "up_right": factor(rank, d // terms, zeros()),
        "up_bias": Part((*lead, d), (*lead_axes, d_axis), zeros()),
    }
