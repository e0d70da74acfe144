"""Low-rank adaptation in the form of a singular value decomposition, whose ranks can be allocated."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import Adaptation, axes_of
from adaptlab.adapt.matrices import matrix_shape, targets
from adaptlab.config import NonNegative, Traced
from adaptlab.rng import stream_id

__all__ = ["adalora", "orthogonality"]


def adalora(
    rank: int = 12,
    *,
    alpha: Traced = 16.0,
    select: str | Sequence[str] = "layers/.*/kernel",
    stddev: Traced = 0.02,
) -> Adaptation:
    """W + s · P diag(λ) Q with trained P `[D, R]`, λ `[R]` and Q `[R, F]` (AdaLoRA, arXiv:2303.10512, eq. 3).

    λ starts at zero and P and Q normal. Which triples (column of P, λᵢ, row of Q) stay is decided while training, by
    the optimiser `adaptlab.optim.adalora`, which sets the λ of others to zero; with any other optimiser all of them
    stay. `orthogonality` is the term of the loss that keeps P and Q near orthogonal: λ are then near singular values.
    Trains R (D + F + 1) parameters per adapted matrix.

    Args:
      rank: R, what each matrix starts with: about 1.5 times the average that is to stay.
      alpha: s = alpha / R.
      select: patterns of the matrices' whole paths; leading axes (a stack of layers) are batch axes.
      stddev: of P's and Q's elements.

    Raises:
      ValueError: a rank below 1, a pattern that matches nothing, or a selected leaf that is not a matrix.
    """
    if rank < 1:
        raise ValueError(f"rank={rank} must be at least 1; use frozen() to train nothing.")

    def init(key: jax.Array, base: Any) -> Any:
        delta = {}
        for path, w in targets(tree.flatten(base, leaf.is_node), select).items():
            *lead, d, f = matrix_shape(path, w, "adalora")
            key_p, key_q = jax.random.split(jax.random.fold_in(key, stream_id(path)))
            delta[path] = {
                "p": stddev * jax.random.normal(key_p, (*lead, d, rank)),
                "lambda": jnp.zeros((*lead, rank)),
                "q": stddev * jax.random.normal(key_q, (*lead, rank, f)),
            }
        return tree.unflatten(delta)

    def bind(base: Any, delta: Any) -> Any:
        flat_delta = tree.flatten(delta)

        def node(path: str, w: Any) -> Any:
            p, values, q = (flat_delta.get(f"{path}/{name}") for name in ("p", "lambda", "q"))
            if p is None or values is None or q is None:
                return w
            scale = jnp.full(p.shape[:-2], jnp.asarray(alpha / rank, jnp.float32))
            return leaf.LowRank(w, p, values[..., None] * q, scale)

        return tree.map_with_path(node, base, is_leaf=leaf.is_node)

    def axes(base_axes: Any) -> Any:
        delta = {}
        for path, (*lead, d, f) in targets(axes_of(base_axes), select).items():
            delta[path] = {"p": (*lead, d, "rank"), "lambda": (*lead, "rank"), "q": (*lead, "rank", f)}
        return tree.unflatten(delta)

    return Adaptation(init, bind, axes)


def orthogonality(*, strength: NonNegative) -> Any:
    """The penalty strength · Σ (‖Pᵀ P - I‖_F² + ‖Q Qᵀ - I‖_F²) over all matrices (arXiv:2303.10512, eq. 4 and 5).

    A term of the objective: `(delta, base) -> penalty`.

    Args:
      strength: γ of the paper, 0.1 to 0.5 there.

    Raises:
      ValueError: when called, if the delta has no P and Q.
    """

    def off(rows: jax.Array) -> jax.Array:
        """‖M Mᵀ - I‖² summed over a stack of `[R, …]`."""
        gram = jnp.matmul(rows, rows.swapaxes(-1, -2), precision=lax.Precision.HIGHEST)
        return jnp.sum(jnp.square(gram - jnp.broadcast_to(jnp.eye(gram.shape[-1]), gram.shape)))

    def term(delta: Any, base: Any) -> jax.Array:
        flat = tree.flatten(delta)
        stems = [path.removesuffix("/lambda") for path in flat if path.endswith("/lambda")]
        if not stems:
            raise ValueError(f"orthogonality finds no AdaLoRA (p, lambda, q) among {sorted(flat)}.")
        return strength * sum(off(flat[f"{s}/p"].swapaxes(-1, -2)) + off(flat[f"{s}/q"]) for s in stems)

    return term
