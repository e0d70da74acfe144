"""Carrying an optimiser's state from one training over to the next: moments matched by path."""

import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaptlab import tree
from adaptlab.config import Given, Traced

__all__ = ["carry", "load_moments", "moments", "save_moments"]

_KEY = "adaptlab.moments"
_KINDS = {optax.ScaleByAdamState: "adam", optax.TraceState: "trace"}


def carry(opt_state: Given, saved: Given, *, keep: Traced = 1.0, b1: Given = 0.9, b2: Given = 0.999) -> Any:
    """Put saved moments into a fresh Optax state: all of their weight (`keep=1`), none (`keep=0`), or a part.

    Only Adam's moments and its count, and the trace of heavy-ball momentum, are replaced. The counts of schedules
    stay: the new training has a schedule of its own.

    What the count must be. After t updates from zero, a moment is m = (1-β) Σ β^(t-i) g_i: its weights sum to 1-β^t,
    which is what Adam's bias correction divides by. A state with moment m and count n goes on without bias exactly
    if the weights in m sum to 1-β^n, because after s further updates they sum to

        β^s (1-β^n) + (1-β^s) = 1-β^(n+s).

    Multiplying the moments by k and leaving the count alone breaks that: the second moment stays too small for about
    1/(1-β2) updates, and steps are up to 1/√k too long. So the factor and the count go together. The second moment,
    which remembers longest, is multiplied by k = `keep`, and the count follows from it:

        k (1-β2^t) = 1-β2^n,   n = ln(1 - k (1-β2^t)) / ln β2, rounded to a whole number.

    Optax has one count for both moments, and β1 differs from β2; hence each moment is multiplied by what n says,

        m <- m (1-β1^n) / (1-β1^t),   v <- v (1-β2^n) / (1-β2^t),

    so that m̂ and v̂ are at first those of the earlier training, and give way to new gradients the sooner the smaller
    k is. k = 1 gives n = t and the saved bits; k = 0 gives n = 0 and the fresh state. A trace is not corrected for
    bias: it is multiplied by k.

    Args:
      opt_state: of a training that has not begun, such as `optimizer.init(delta)`.
      saved: from `moments` or `load_moments`.
      keep: k, from 0 to 1 (and cut there).
      b1: β1 of the training to come; the divisor uses the saved training's own.
      b2: β2 of the training to come.

    Returns:
      The state, of the same structure, shapes and types.

    Raises:
      ValueError: the two sides do not hold moments of the same kind, paths and shapes; both are listed.

    >>> fresh = optax.scale_by_adam().init({"w": jnp.zeros(2)})
    >>> old = fresh._replace(count=jnp.int32(9), mu={"w": jnp.ones(2)}, nu={"w": jnp.ones(2)})
    >>> carry(fresh, moments(old)).mu["w"]
    Array([1., 1.], dtype=float32)
    """
    _match(moments(opt_state), saved)
    k: Any = jnp.clip(jnp.asarray(keep, jnp.float32), 0.0, 1.0)

    def scaled(fresh: Any, old: Any, factor: Any) -> Any:
        flat = tree.flatten(old)

        def one(path: str, x: Any) -> Any:
            # Not 0 · old: a fresh state is exactly zero, whatever the old one holds.
            return jnp.where(factor > 0, jnp.asarray(flat[path], x.dtype) * factor.astype(x.dtype), x)

        return tree.map_with_path(one, fresh)

    def replace(state: Any) -> Any:
        if isinstance(state, optax.TraceState):
            return optax.TraceState(scaled(state.trace, saved["trace"]["trace"], k))
        if not isinstance(state, optax.ScaleByAdamState):
            return state
        old = saved["adam"]
        count = _count(old["count"], k, b2)
        return optax.ScaleByAdamState(
            count,
            scaled(state.mu, old["mu"], _ratio(_weight(b1, count), _weight(old["b1"], old["count"]))),
            scaled(state.nu, old["nu"], _ratio(_weight(b2, count), _weight(old["b2"], old["count"]))),
        )

    return jax.tree.map(replace, opt_state, is_leaf=_holds)


def _weight(beta: Any, count: Any) -> jax.Array:
    """1-β^count: what the weights in a moment sum to."""
    return -jnp.expm1(jnp.asarray(count, jnp.float32) * jnp.log(jnp.asarray(beta, jnp.float32)))


def _ratio(new: jax.Array, old: jax.Array) -> jax.Array:
    """New / old, and 0 where nothing was averaged yet."""
    return jnp.where(old > 0, new / jnp.where(old > 0, old, 1.0), 0.0)


def _count(old: Any, k: jax.Array, b2: Any) -> jax.Array:
    """The n of `carry`, int32."""
    t = jnp.asarray(old, jnp.int32)
    n = jnp.log1p(-k * _weight(b2, t)) / jnp.log(jnp.asarray(b2, jnp.float32))
    n = jnp.round(jnp.clip(n, 0.0, t.astype(jnp.float32))).astype(jnp.int32)
    return jnp.where(k >= 1.0, t, n)  # for large t, 1-β2^t is 1 in float32 and no longer says what t was


def _holds(state: Any) -> bool:
    return isinstance(state, tuple(_KINDS))


def moments(opt_state: Any, *, b1: Any = 0.9, b2: Any = 0.999) -> dict[str, Any]:
    """Return what can be carried over of an Optax state, as a nested dict of arrays.

    `{"adam": {"count", "mu", "nu", "b1", "b2"}}` or `{"trace": {"trace"}}`, the moments at the paths of what was
    trained; the betas are those the training used, which Optax's state does not hold.

    Raises:
      ValueError: the state holds no moments, or several of one kind.
    """
    holders = [x for x in jax.tree.leaves(opt_state, is_leaf=_holds) if _holds(x)]
    kinds = [_KINDS[type(x)] for x in holders]
    if not kinds or len(set(kinds)) < len(kinds):
        raise ValueError(
            f"The optimiser's state holds {kinds or 'no moments'}; expected one of each of {sorted(_KINDS.values())} "
            "at most, and at least one: use adaptlab.optim.adamw or sgd."
        )
    found = {kind: _nested(x) for kind, x in zip(kinds, holders, strict=True)}
    if "adam" in found:
        found["adam"] |= {"b1": jnp.asarray(b1, jnp.float32), "b2": jnp.asarray(b2, jnp.float32)}
    return found


def _nested(state: Any) -> dict[str, Any]:
    """A state as a nested dict: a moment of a tree at its paths, one of a single array as it is."""
    return {
        name: x if isinstance(x, jax.Array | np.ndarray) else tree.unflatten(tree.flatten(x))
        for name, x in state._asdict().items()
    }


def _match(fresh: Any, saved: Any) -> None:
    wanted, found = ({p: tuple(np.shape(x)) for p, x in tree.flatten(side).items()} for side in (fresh, saved))
    if wanted == found:
        return

    def listed(side: dict[str, Any], other: dict[str, Any]) -> str:
        lines = [f"  {'=' if other.get(p) == s else '!' if p in other else '-'} {p} {s}" for p, s in side.items()]
        return "\n".join(lines) or "  (nothing)"

    raise ValueError(
        "Moments can only be carried over to the very weights they belong to (=: on both sides, !: of another shape, "
        f"-: not on the other side).\nThe new optimiser has:\n{listed(wanted, found)}\nSaved are:\n"
        f"{listed(found, wanted)}\nTrain the same weights with the same kind of optimiser, or start without carry-over."
    )


def save_moments(path: str | Path, opt_state: Any, *, base: str = "", b1: Any = 0.9, b2: Any = 0.999) -> None:
    """Write the moments of an optimiser's state as safetensors, atomically.

    Args:
      path: the file.
      opt_state: the state at the end of a training.
      base: the SHA-256 of the weights that the training ended in.
      b1: the training's β1, see `moments`.
      b2: its β2.
    """
    from safetensors.numpy import save_file

    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    found = tree.flatten(moments(opt_state, b1=b1, b2=b2))
    flat = {name: np.asarray(x, order="C") for name, x in found.items()}
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(flat, partial, {_KEY: json.dumps({"base": base, "digest": tree.digest(flat)})})
    os.replace(partial, path)


def load_moments(path: str | Path, *, base: str | None = None) -> dict[str, Any]:
    """Read what `save_moments` wrote: the nested dict that `carry` takes, as NumPy arrays.

    Args:
      path: the file.
      base: the SHA-256 of the weights the new training starts from; None skips the check.

    Raises:
      ValueError: no such file, not moments, damaged, or of another base.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"There is no optimiser state at {path}.")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if _KEY not in metadata:
        raise ValueError(f"{path} is a safetensors file, but not moments that save_moments wrote.")
    header = json.loads(metadata[_KEY])
    if tree.digest(flat) != header["digest"]:
        raise ValueError(f"{path} is damaged: its arrays do not have the digest in its header.")
    if base is not None and header["base"] != base:
        raise ValueError(
            f"{path} belongs to the weights with SHA-256 {header['base'] or '(unknown)'}, not to {base}; "
            "choose that base."
        )
    return tree.unflatten(flat)
