"""Low-rank adaptation."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import Adaptation, axes_of
from adaptlab.adapt.matrices import EffectiveRank, count_ranks, keep_ranks, matrix_shape, targets
from adaptlab.config import Traced
from adaptlab.rng import stream_id

__all__ = ["as_lora", "fan_in_uniform", "lora", "zeros"]

Init = Callable[[Any, tuple[int, ...]], jax.Array]


def fan_in_uniform(gain: float = 1.0) -> Init:
    """Return an initialiser `[*L, D, R] ~ U(-gain/√D, gain/√D)`: what PyTorch's Linear and PEFT's A start from."""

    def init(key: Any, shape: tuple[int, ...]) -> jax.Array:
        bound = gain * shape[-2] ** -0.5
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return init


def zeros() -> Init:
    """Return an initialiser of zeros."""
    return lambda key, shape: jnp.zeros(shape)


def lora(
    rank: int = 8,
    *,
    alpha: Traced = 16.0,
    effective_rank: EffectiveRank | None = None,
    layer_ranks: Sequence[Traced] | None = None,
    select: str | Sequence[str] = "layers/.*/kernel",
    scaling: Literal["standard", "rank_stabilised"] = "standard",
    init_a: Init | None = None,
    init_b: Init | None = None,
) -> Adaptation:
    """W + s · A B with trained A `[D, R]` and B `[R, F]` (LoRA, arXiv:2106.09685, eq. 3).

    The product is never formed while training: x W + s (x A) B. Trains R (D + F) parameters per adapted matrix.

    Args:
      rank: R, at least 1.
      alpha: the numerator of the scale.
      effective_rank: at most `rank`: only so many columns of A and rows of B are used and trained, and it takes R's
        place in the scale, so that runs of several ranks share a program. None uses all.
      layer_ranks: the same for each layer of a stack by itself, e.g. `[8, 8, 4, 0]`; a layer of rank 0 is not adapted.
        Runs of other ranks share a program. The matrices' first axis must be that of the layers.
      select: patterns of whole `/`-joined paths of the matrices to adapt, e.g.
        `"layers/attention/(query|value)/kernel"`. Leading axes (a stack of layers) are batch axes.
      scaling: "standard" is s = alpha / R; "rank_stabilised" is s = alpha / √R (rsLoRA, arXiv:2312.03732, eq. 4).
      init_a: `(key, shape) -> A`; by default `fan_in_uniform()`.
      init_b: `(key, shape) -> B`; by default `zeros()`, so that the adapted model starts as the base. One of the
        two must be zero for that.

    Raises:
      ValueError: a rank below 1, an unknown scaling, a pattern that matches nothing, or a selected leaf that is
        not a matrix.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1; use frozen() to train nothing.")
    if scaling not in ("standard", "rank_stabilised"):
        raise ValueError(f"scaling={scaling!r} is not one of ['standard', 'rank_stabilised'].")
    if effective_rank is not None and layer_ranks is not None:
        raise ValueError("effective_rank and layer_ranks both say how many ranks are used; give one of them.")
    init_a, init_b = init_a or fan_in_uniform(), init_b or zeros()
    kept = effective_rank if layer_ranks is None else layer_ranks
    scales = functools.partial(_scales, alpha=alpha, ranks=rank if kept is None else kept, scaling=scaling)

    def init(key: jax.Array, base: Any) -> Any:
        delta = {}
        for path, w in targets(tree.flatten(base, leaf.is_node), select).items():
            *lead, d, f = matrix_shape(path, w, "lora")
            scales(path, tuple(lead))  # raises if the ranks are of other layers
            # One key per path: selecting one more matrix leaves the others' draws as they were.
            key_a, key_b = jax.random.split(jax.random.fold_in(key, stream_id(path)))
            delta[path] = {"a": init_a(key_a, (*lead, d, rank)), "b": init_b(key_b, (*lead, rank, f))}
        return tree.unflatten(delta)

    def bind(base: Any, delta: Any) -> Any:
        flat_delta = tree.flatten(delta)

        def node(path: str, w: Any) -> Any:
            a, b = flat_delta.get(f"{path}/a"), flat_delta.get(f"{path}/b")
            if a is None or b is None:
                return w
            return leaf.LowRank(w, a, keep_ranks(b, kept), scales(path, a.shape[:-2]))

        return tree.map_with_path(node, base, is_leaf=leaf.is_node)

    def axes(base_axes: Any) -> Any:
        delta = {}
        for path, (*lead, d, f) in targets(axes_of(base_axes), select).items():
            delta[path] = {"a": (*lead, d, "rank"), "b": (*lead, "rank", f)}
        return tree.unflatten(delta)

    return Adaptation(init, bind, axes, count=lambda base, delta: count_ranks(delta, kept))


def _scales(path: str, lead: tuple[int, ...], *, alpha: Any, ranks: Any, scaling: str) -> jax.Array:
    """Return alpha / R, or alpha / √R, as `[*L]`; `ranks` is R, or the R of each layer of the stack."""
    if not isinstance(ranks, Sequence):
        return jnp.full(lead, alpha / (ranks if scaling == "standard" else ranks**0.5), jnp.float32)
    if not lead or lead[0] != len(ranks):
        raise ValueError(
            f"layer_ranks has {len(ranks)} numbers and {path!r} is a stack of {lead[0] if lead else 'no'} layers; give "
            f"one number for each, or narrow `select`."
        )
    # A layer without ranks adds zero whatever its scale, which must only be finite.
    divisor = jnp.maximum(jnp.asarray(ranks, jnp.float32), 1.0)
    scale = alpha / (divisor if scaling == "standard" else divisor**0.5)
    return jnp.broadcast_to(scale.reshape(-1, *[1] * (len(lead) - 1)), lead)


def as_lora(params: Any) -> Any:
    """Return the delta of `lora(R, alpha=R)` that is the sum of all low-rank side paths of a bound model.

    Exact: A's and B's are set side by side, W + Σᵢ sᵢ Aᵢ Bᵢ = W + [s₁A₁, s₂A₂, …] [B₁; B₂; …], so R is the sum of their
    ranks. It makes of what needs a prepared base (PiSSA) an adapter of the base itself.

    Args:
      params: what `bind` returned; weights without a side path are left out.
    """
    delta = {}
    for path, node in tree.flatten(params, leaf.is_node).items():
        factors = []
        while isinstance(node, leaf.LowRank):
            factors.append((node.scale[..., None, None] * node.a, node.b))
            node = node.w
        if factors:
            a, b = zip(*factors, strict=True)
            delta[path] = {"a": jnp.concatenate(a, axis=-1), "b": jnp.concatenate(b, axis=-2)}
    return tree.unflatten(delta)
