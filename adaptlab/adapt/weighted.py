"""Several adapters at once: saved ones, trained ones, and their weighted sum."""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from adaptlab import config, leaf, tree
from adaptlab.adapt.adaptation import Adaptation, count_trained, prepared
from adaptlab.adapt.constants import bare, held, hold
from adaptlab.adapt.files import SavedDelta, load_delta
from adaptlab.config import GIVEN, Traced

__all__ = ["Share", "loaded", "share", "weighted"]


class Share(NamedTuple):
    """An adapter and its weight."""

    adapter: Adaptation
    weight: Any


def share(adapter: Adaptation, *, weight: Traced = 1.0) -> Share:
    """Return an adapter with its weight in `weighted`.

    Args:
      adapter: the adaptation.
      weight: λ_i; negative unlearns.
    """
    return Share(adapter, weight)


def weighted(adapters: Mapping[str, Adaptation | Share]) -> Adaptation:
    """W + Σ_i λ_i (W_i - W), where W_i is what adapter i alone makes of the base's weight W.

    Low-rank updates are side paths next to each other, weights that train in full are summed, and any other node costs
    two products more. Each adapter trains its own delta, `{name: delta_i}`; one that is `loaded` has none.

    Args:
      adapters: adaptations, or `share(adaptation, weight=λ)` for other weights than 1.

    Raises:
      ValueError: no adapter, a name with "/", or when bound, an adapter that adds computation at a slot.
    """
    shares = {name: x if isinstance(x, Share) else Share(x, 1.0) for name, x in adapters.items()}
    if not shares or any("/" in name for name in shares):
        raise ValueError(f"weighted({list(shares)}): give at least one adapter, and names without '/'.")

    def each(base: Any, delta: Any, keys: Mapping[str, Any]) -> Any:
        plain = bare(base)
        models = []
        for name, (adapter, weight) in shares.items():
            below, own = (base if adapter.prepare else plain), delta.get(name, {})
            drawn = adapter.sample(below, own, keys[name]) if adapter.sample and keys else None
            models.append((weight, adapter.bind(below, own) if drawn is None else drawn))
        return _sum(plain, models)

    def init(key: jax.Array, base: Any) -> Any:
        keys = _keys(key, shares)
        plain = bare(base)
        return {n: one.adapter.init(keys[n], base if one.adapter.prepare else plain) for n, one in shares.items()}

    def sample(base: Any, delta: Any, key: Any) -> Any:
        return each(base, delta, _keys(key, shares))

    def axes(base_axes: Any) -> Any:
        return {name: one.adapter.axes(base_axes) for name, one in shares.items()}

    def prepare(base: Any) -> Any:
        return functools.reduce(lambda below, one: prepared(one.adapter, below), shares.values(), base)

    samples, prepares = (any(getattr(x.adapter, name) for x in shares.values()) for name in ("sample", "prepare"))

    def count(base: Any, delta: Any) -> int:
        return sum(count_trained(one.adapter, base, delta[name]) for name, one in shares.items())

    bind = functools.partial(each, keys={})
    return Adaptation(init, bind, axes, sample if samples else None, prepare if prepares else None, count)


def _keys(key: Any, shares: Mapping[str, Any]) -> dict[str, Any]:
    return {name: jax.random.fold_in(key, i) for i, name in enumerate(shares)}


def _sum(base: Any, models: list[tuple[Any, Any]]) -> Any:
    flat = [(weight, tree.flatten(model, leaf.is_node)) for weight, model in models]
    paths = tree.flatten(base, leaf.is_node)
    if added := sorted({path for _, model in flat for path in model} - paths.keys()):
        raise ValueError(f"weighted sums changes of weights, and an adapter adds computation at {added}; see fusion().")
    summed = {}
    for path, w in paths.items():
        changed = [(weight, _summable(model[path])) for weight, model in flat if model[path] is not w]
        out = w
        for weight, x in changed:
            if not leaf.is_node(x):
                out = out + jnp.asarray(weight, out.dtype) * (x - leaf.dense(w))
        for weight, x in changed:
            if isinstance(x, leaf.LowRank) and x.w is w:
                out = leaf.LowRank(out, x.a, x.b, x.scale * weight)
            elif leaf.is_node(x):
                lead = jax.eval_shape(leaf.dense, w).shape[: -1 if path.endswith(("scale", "bias")) else -2]
                out = leaf.Blend(out, x, w, jnp.full(lead, weight, jnp.float32))
        summed[path] = out
    return tree.unflatten(summed)


def _summable(x: Any) -> Any:
    """An array if that is what it is: a sum of several adapters trains the layers of all."""
    return x.w if isinstance(x, leaf.TrainedLayers) else x


def loaded(
    path: str,
    *,
    train: bool = False,
    fresh: Annotated[Any, GIVEN] = None,
    slots: Annotated[Any, GIVEN] = None,
) -> Adaptation:
    """An adapter from a file that `save_delta` wrote: as it is, or to be trained further.

    As it is, it has no delta; its arrays rest in the prepared base, an argument of every program like the base itself.
    In a chain it comes first. Unlike other adaptations it does not start as the base.

    Args:
      path: the saved delta. It belongs to one base; which one cannot be checked here.
      train: whether training goes on from it; delta then starts as the saved one.
      fresh: the model's own initialisation.
      slots: where the model takes added computation.

    Raises:
      ValueError: no delta, or one that needs a prepared base of its own and is not to be trained.
    """
    saved = _read(path, Path(path).stat().st_mtime_ns if Path(path).exists() else 0)
    inner = config.instantiate(saved.adapt, **{k: v for k, v in (("fresh", fresh), ("slots", slots)) if v is not None})
    if train:
        return inner._replace(init=lambda key, base: jax.tree.map(jnp.asarray, saved.delta))
    if inner.prepare is not None:
        raise ValueError(
            f"{path}: {saved.adapt['_target_']} prepares the base, which only one adaptation can; convert the delta "
            f"with adaptlab.adapt.as_lora, or merge it with `python -m scripts.merge`."
        )

    def prepare(base: Any) -> Any:
        flat = tree.flatten(base, leaf.is_node)
        first = next(iter(flat))
        flat[first] = hold(flat[first], saved.digest, saved.delta)
        return tree.unflatten(flat)

    def bind(base: Any, delta: Any) -> Any:
        beside = [held(w) for w in tree.flatten(base, leaf.is_node).values()]
        arrays = next((one[saved.digest] for one in beside if saved.digest in one), None)
        if arrays is None:
            raise ValueError(f"{path} is bound to a base that was not prepared for it; in a chain it must come first.")
        return inner.bind(bare(base), arrays)

    return Adaptation(lambda key, base: {}, bind, lambda base_axes: {}, prepare=prepare)


@functools.lru_cache(maxsize=32)
def _read(path: str, changed: int) -> SavedDelta:
    """Read a delta once per version: factories are called in every trace."""
    del changed
    return load_delta(path)
