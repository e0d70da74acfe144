"""The neutral elements and the ways to combine: everything trains, nothing trains, each part its own way."""

from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

import jax

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import Adaptation, axes_of, count_trained, in_full, prepared
from adaptlab.config import GIVEN

__all__ = ["frozen", "full", "partition", "scratch"]


def full() -> Adaptation:
    """Full fine-tuning: delta is the adapted weights themselves, starting as a copy of the base, in float32 at least.

    Trains every parameter: count(delta) = count(base).

    Raises:
      ValueError: when bound to a base with quantised weights, whose codes are integers and cannot train.
    """

    def init(key: jax.Array, base: Any) -> Any:
        flat = tree.flatten(base, leaf.is_node)
        if codes := [path for path, w in flat.items() if leaf.is_quantized(w)]:
            raise ValueError(
                f"full() cannot train {codes}: they are quantised. Train beside them with lora(), or open the base as "
                f"it is (base.quantize=null); quantization_aware() trains float weights for a quantised use."
            )
        return jax.tree.map(in_full, base)

    return Adaptation(
        init=init,
        bind=lambda base, delta: delta,
        axes=lambda base_axes: base_axes,
    )


def frozen() -> Adaptation:
    """No adaptation: delta is empty and the base stays what it is. The neutral element of `partition`."""
    return Adaptation(
        init=lambda key, base: {},
        bind=lambda base, delta: base,
        axes=lambda base_axes: {},
    )


def scratch(*, fresh: Annotated[Callable[[Any], Any], GIVEN]) -> Adaptation:
    """Training from scratch: the base's architecture from random weights, what fine-tuning is compared with.

    The one adaptation that does not start as the base.

    Args:
      fresh: `key -> params`, the model's own initialisation.
    """
    return Adaptation(
        init=lambda key, base: fresh(key),
        bind=lambda base, delta: delta,
        axes=lambda base_axes: base_axes,
    )


def partition(parts: Mapping[str, Adaptation]) -> Adaptation:
    """Adapt each part of the model its own way.

    Args:
      parts: `{pattern: adaptation}`. Patterns are regular expressions matched against whole `/`-joined paths of
        the base; the first match wins.

    Raises:
      ValueError: when bound to a base, if a pattern matches nothing or a path is not covered; add
        `".*": frozen()` for the rest.

    >>> adaptation = partition({"head/.*": full(), ".*": frozen()})
    >>> base = {"head": {"kernel": jax.numpy.ones(2)}, "body": {"kernel": jax.numpy.ones(3)}}
    >>> adaptation.init(jax.random.key(0), base)
    {'head': {'kernel': Array([1., 1.], dtype=float32)}}
    """
    patterns = list(parts)

    def split(flat: dict[str, Any]) -> list[dict[str, Any]]:
        owner = tree.select(flat, patterns)
        if uncovered := [path for path, i in owner.items() if i is None]:
            raise ValueError(
                f"partition({patterns}) covers no {uncovered}; add '.*': frozen() to leave the rest as it is."
            )
        return [{p: x for p, x in flat.items() if owner[p] == i} for i in range(len(patterns))]

    def pieces(base: Any) -> list[tuple[Adaptation, Any]]:
        return list(zip(parts.values(), map(tree.unflatten, split(tree.flatten(base, leaf.is_node))), strict=True))

    def init(key: jax.Array, base: Any) -> Any:
        # Every part gets the same key: parts draw per path, and their paths differ.
        return _union([part.init(key, piece) for part, piece in pieces(base)])

    def parted(base: Any, delta: Any) -> Iterator[tuple[Adaptation, Any, Any]]:
        flat = tree.flatten(delta)
        for part, piece in pieces(base):
            own = tree.flatten(jax.eval_shape(part.init, jax.random.key(0), piece))
            yield part, piece, tree.unflatten({path: flat[path] for path in own})

    def bind(base: Any, delta: Any) -> Any:
        return _union([part.bind(piece, own) for part, piece, own in parted(base, delta)])

    def sample(base: Any, delta: Any, key: Any) -> Any:
        return _union(
            [p.sample(piece, own, key) if p.sample else p.bind(piece, own) for p, piece, own in parted(base, delta)]
        )

    def axes(base_axes: Any) -> Any:
        groups = split(axes_of(base_axes))
        return _union([p.axes(tree.unflatten(g)) for p, g in zip(parts.values(), groups, strict=True)])

    def prepare(base: Any) -> Any:
        return _union([prepared(part, piece) for part, piece in pieces(base)])

    def count(base: Any, delta: Any) -> int:
        return sum(count_trained(*one) for one in parted(base, delta))

    samples, prepares = (any(getattr(p, name) for p in parts.values()) for name in ("sample", "prepare"))
    return Adaptation(init, bind, axes, sample if samples else None, prepare if prepares else None, count)


def _union(trees: list[Any]) -> Any:
    """Join nested dicts whose leaves (arrays, nodes or axis tuples) stand at different paths."""
    joined: dict[str, Any] = {}
    for one in trees:
        _graft(joined, one)
    return joined


def _graft(onto: dict[str, Any], branch: Mapping[str, Any]) -> None:
    for name, value in branch.items():
        if isinstance(value, Mapping):
            _graft(onto.setdefault(name, {}), value)
        elif name in onto:
            raise ValueError(f"partition: two parts put something at {name!r}; let one pattern cover what both adapt.")
        else:
            onto[name] = value
