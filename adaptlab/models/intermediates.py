"""What a model computes on its way, for those who ask: the same program, of which more is returned."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

__all__ = ["KINDS", "MOE_KINDS", "make_intermediates", "record", "recorded"]

KINDS = ("hidden", "attention")
"""Each kind is a Linen collection of its own, so that only what was asked for is computed and kept."""

MOE_KINDS = (*KINDS, "router", "chosen", "dropped")
"""What a mixture of experts records."""

_NAME = "recorded"


def record(module: nn.Module, kind: str, value: Callable[[], jax.Array]) -> None:
    """Keep `value()` for whoever asked for its kind; otherwise it is never called."""
    if module.is_mutable_collection(kind) and not module.is_initializing():
        module.sow(kind, _NAME, value(), init_fn=lambda: None, reduce_fn=_latest)


def _latest(_: Any, value: Any) -> Any:
    return value


def make_intermediates(run: Callable[..., Any], known: Sequence[str] = KINDS) -> Callable[..., dict[str, jax.Array]]:
    """Return a model's `intermediates` (see `adaptlab.models.Model`).

    Args:
      run: `(params, tokens_BT, *, mutable, **inputs) -> (outputs, {collection: tree})`, the model with collections that
        may be written.
      known: the kinds it records.
    """

    def intermediates(
        params: Any, tokens: jax.Array, *, kinds: Sequence[str] = KINDS, **inputs: Any
    ) -> dict[str, jax.Array]:
        if unknown := [kind for kind in kinds if kind not in known]:
            raise ValueError(f"kinds={unknown} are not recorded by this model; choose from {list(known)}.")
        _, found = run(params, tokens, mutable=list(kinds), **inputs)
        return {kind: recorded(kind, found[kind], tokens.shape[1]) for kind in kinds}

    return intermediates


def recorded(kind: str, found: Mapping[str, Any], length: int) -> jax.Array:
    """Return one kind from its collection: all layers together, without the rows of a prompt, which stand in front.

    Args:
      kind: what was recorded.
      found: the collection.
      length: T, the tokens of the text.
    """
    if kind == "attention":
        return found["layers"]["attention"][_NAME][:, :, :, -length:]
    if kind in MOE_KINDS[len(KINDS) :]:
        return found["layers"]["feed_forward"][_NAME][:, :, -length:]
    whole = jnp.concatenate([found[_NAME][None], found["layers"][_NAME]])
    return whole[:, :, -length:]
