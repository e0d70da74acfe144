"""Adaptations of adaptations: one after another."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import Adaptation, count_trained, prepared

__all__ = ["chain"]


def chain(stages: Mapping[str, Adaptation] | Sequence[Adaptation]) -> Adaptation:
    """Adapt what the stage before has bound: params = bind_n(… bind_1(bind_0(base, δ_0), δ_1) …, δ_n).

    All stages train; delta is `{stage's name: its delta}`. On paths of their own, as with LoRA and the layer norms,
    the order does not matter; on the same path the later stage sees the earlier one's node as its weight.

    Args:
      stages: the adaptations, in order; a list's are named "0", "1", … A config had better name them: only numbers
        below names may differ between runs of one program.

    Raises:
      ValueError: no stage, a name with "/", or when bound, a stage that copies what an earlier one adapts, as `full()`
        after `lora()` does.
    """
    named = dict(stages) if isinstance(stages, Mapping) else {str(i): stage for i, stage in enumerate(stages)}
    if not named or any("/" in name for name in named):
        raise ValueError(f"chain of {list(named)}: give at least one stage, and names without '/'.")

    def bound(base: Any, name: str, delta: Any, key: Any) -> Any:
        stage = named[name]
        if key is None or stage.sample is None:
            return stage.bind(base, delta)
        return stage.sample(base, delta, key)

    def init(key: jax.Array, base: Any) -> Any:
        delta = {}
        for i, (name, stage) in enumerate(named.items()):
            # Stages get different keys: two of a kind may draw at the same paths.
            delta[name] = stage.init(jax.random.fold_in(key, i), base)
            if copied := [p for p, x in tree.flatten(delta[name], leaf.is_node).items() if leaf.is_node(x)]:
                raise ValueError(
                    f"chain: stage {name!r} copies {copied}, adapted before it: put it first, or select less."
                )
            base = stage.bind(base, delta[name])
        return delta

    def bind(base: Any, delta: Any) -> Any:
        for name in named:
            base = bound(base, name, delta.get(name, {}), None)
        return base

    def sample(base: Any, delta: Any, key: Any) -> Any:
        for i, name in enumerate(named):
            base = bound(base, name, delta.get(name, {}), jax.random.fold_in(key, i))
        return base

    def axes(base_axes: Any) -> Any:
        return {name: stage.axes(base_axes) for name, stage in named.items()}

    def prepare(base: Any) -> Any:
        for stage in named.values():
            base = prepared(stage, base)
        return base

    def count(base: Any, delta: Any) -> int:
        return sum(count_trained(stage, base, delta.get(name, {})) for name, stage in named.items())

    values = named.values()
    return Adaptation(
        init,
        bind,
        axes,
        sample=sample if any(stage.sample for stage in values) else None,
        prepare=prepare if any(stage.prepare for stage in values) else None,
        count=count,
    )
