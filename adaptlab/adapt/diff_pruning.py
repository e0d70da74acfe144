"""Diff pruning: a sparse change of all weights, by gates that learn to close."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import Adaptation, axes_of
from adaptlab.config import NonNegative, Traced
from adaptlab.rng import stream_id

__all__ = ["diff_pruning", "expected_l0", "l0", "magnitude_pruned"]

_LOW, _HIGH = -1.5, 1.5
_OPEN = 20.0


def diff_pruning(
    select: str | Sequence[str] = ".*",
    *,
    structure: Literal["none", "matrix", "output"] = "none",
    log_alpha: Traced = 5.0,
) -> Adaptation:
    """W + z ⊙ w with trained w and hard-concrete gates z (diff pruning, arXiv:2012.07463, sec. 3.1 and 3.3).

        s = σ(log u - log(1 - u) + log α),  u ~ U(0, 1),  z = min(1, max(0, s (ζ - γ) + γ))

    are the gates of arXiv:1712.01312, eq. 10 and 11, with the temperature 1 and (γ, ζ) = (-1.5, 1.5): exactly 0 or 1
    with positive probability. A training step draws them; `bind` takes z = min(1, max(0, σ(log α) (ζ - γ) + γ))
    (eq. 13). Sparsity comes from the penalty `l0`, and what is left is cut to a budget by `magnitude_pruned`. Trains
    two numbers per weight: w, starting at 0, and log α.

    Args:
      select: patterns of whole `/`-joined paths of the base.
      structure: gates shared by groups of weights, which multiply those of each weight: "matrix" has one for every
        matrix or vector (of every layer), "output" one for every column; "none" has no groups.
      log_alpha: where every log α starts; at 5 nearly all gates are open.

    Raises:
      ValueError: an unknown structure, or a pattern that matches nothing.
    """
    if structure not in ("none", "matrix", "output"):
        raise ValueError(f"structure={structure!r} is not one of ['none', 'matrix', 'output'].")

    def init(key: jax.Array, base: Any) -> Any:
        delta = {}
        for path, w in _chosen(tree.flatten(base, leaf.is_node), select).items():
            shape = jax.eval_shape(leaf.dense, w).shape
            gates = {"gate": shape, **({} if structure == "none" else {"group": _group(path, shape, structure, 1)})}
            delta[path] = {name: jnp.full(s, log_alpha, jnp.float32) for name, s in gates.items()}
            delta[path]["w"] = jnp.zeros(shape, jnp.float32)
        return tree.unflatten(delta)

    def bound(base: Any, delta: Any, gate: Callable[[str, Any], jax.Array]) -> Any:
        flat, own = tree.flatten(base, leaf.is_node), tree.flatten(delta)
        for path in _chosen(flat, select):
            change = own[f"{path}/w"]
            for name in ("gate", "group"):
                if f"{path}/{name}" in own:
                    change = change * gate(f"{path}/{name}", own[f"{path}/{name}"])
            w = flat[path]
            flat[path] = leaf.Added(w, change) if leaf.is_node(w) else w + change.astype(w.dtype)
        return tree.unflatten(flat)

    def bind(base: Any, delta: Any) -> Any:
        return bound(base, delta, lambda _, log_alpha: _stretched(log_alpha))

    def sample(base: Any, delta: Any, key: Any) -> Any:
        def gate(path: str, log_alpha: Any) -> jax.Array:
            noise = jax.random.logistic(jax.random.fold_in(key, stream_id(path)), log_alpha.shape)  # log u - log(1 - u)
            return _stretched(noise + log_alpha)

        return bound(base, delta, gate)

    def axes(base_axes: Any) -> Any:
        delta = {}
        for path, names in _chosen(axes_of(base_axes), select).items():
            delta[path] = {"gate": names, "w": names}
            if structure != "none":
                delta[path]["group"] = _group(path, names, structure, None)
        return tree.unflatten(delta)

    return Adaptation(init, bind, axes, sample)


def _chosen(flat: dict[str, Any], select: str | Sequence[str]) -> dict[str, Any]:
    return {path: flat[path] for path, i in tree.select(flat, select).items() if i is not None}


def _group(path: str, sizes: tuple[Any, ...], structure: str, one: Any) -> tuple[Any, ...]:
    """The sizes (or axis names) of a leaf's group gates: `one` along the axes that share a gate."""
    inner = 1 if path.endswith(("scale", "bias")) else 2
    kept = sizes[-1] if structure == "output" and inner == 2 else one
    return (*sizes[:-inner], *[one] * (inner - 1), kept)


def _stretched(logit: Any) -> jax.Array:
    return jnp.clip(jax.nn.sigmoid(logit) * (_HIGH - _LOW) + _LOW, 0.0, 1.0)


def expected_l0(delta: Any) -> jax.Array:
    """Return the expected number of changed weights, Σ P(z ≠ 0) = Σ σ(log α - log(-γ / ζ)) (arXiv:1712.01312, eq. 12).

    Under gates of groups a weight changes with the product of both probabilities.

    Raises:
      ValueError: a delta without gates.
    """
    flat, total = tree.flatten(delta), []
    for path, log_alpha in flat.items():
        prefix, _, name = path.rpartition("/")
        if name == "gate" and f"{prefix}/w" in flat:
            group = flat.get(f"{prefix}/group")
            total.append(jnp.sum(_open(log_alpha) if group is None else _open(log_alpha) * _open(group)))
    if not total:
        raise ValueError("expected_l0 counts open gates, and this delta has none; it is for diff_pruning.")
    return sum(total[1:], total[0])


def _open(log_alpha: Any) -> jax.Array:
    return jax.nn.sigmoid(log_alpha - np.log(-_LOW / _HIGH))


def l0(*, strength: NonNegative) -> Callable[[Any, Any], jax.Array]:
    """The penalty λ · E‖δ‖₀ (arXiv:2012.07463, sec. 3.1): λ for every weight that is expected to change.

    Args:
      strength: λ. The sum goes over all weights, so that it is small: the paper's is about 1e-7.
    """
    return lambda delta, base: strength * expected_l0(delta)


def magnitude_pruned(delta: Any, density: float) -> Any:
    """Return the delta with the largest changes alone, by their size over all weights together (sec. 3.2).

    Gates of the result stand open, so that w is the change itself: exactly the share `density` of it is not zero, or
    less if fewer gates were open.

    Args:
      delta: a trained delta of `diff_pruning`, on the host or the device.
      density: the share of the weights that may change, above 0 and at most 1.

    Raises:
      ValueError: a density out of range.
    """
    if not 0 < density <= 1:
        raise ValueError(f"density={density} is not above 0 and at most 1.")
    flat, changes = tree.flatten(delta), {}
    for path in [path for path in flat if path.endswith("/w") and f"{path[:-2]}/gate" in flat]:
        change = np.asarray(flat[path])
        for gate in (f"{path[:-2]}/gate", f"{path[:-2]}/group"):
            if gate in flat:
                change = change * np.asarray(_stretched(jnp.asarray(flat[gate])))
                flat[gate] = np.full(np.shape(flat[gate]), _OPEN, np.float32)
        changes[path] = change
    sizes = np.abs(np.concatenate([change.ravel() for change in changes.values()]))
    keep = np.zeros(sizes.size, bool)
    keep[np.argsort(-sizes, kind="stable")[: round(density * sizes.size)]] = True
    ends = np.cumsum([change.size for change in changes.values()])[:-1]
    for (path, change), kept in zip(changes.items(), np.split(keep, ends), strict=True):
        flat[path] = np.where(kept.reshape(change.shape), change, 0).astype(np.float32)
    return tree.unflatten(flat)
