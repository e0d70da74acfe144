"""What every model is to the other rooms."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from adaptlab.shard import Placement, on

__all__ = ["Model", "Pretrained", "Slot", "placed"]

PyTree = Any


class Slot(NamedTuple):
    """A place where an adaptation may add computation: a path of `params` that the base leaves empty.

    Attributes:
      kind: what is read there.
        "residual": a node called as `node(y, x)` with what a sub-layer adds to the residual stream, y `[B, T, D]`, and
        the sub-layer's (normalised) input x `[B, T, D]`; returns what is added instead.
        "prefix": a node whose `keys_values()` are keys and values `[P, G, K]` (before any rotation, which they do not
        get) that every query sees in front of its own.
        "prompt": a node whose `rows()` are embeddings `[P, D]` in front of every sequence.
      shape: the leading (layer) axes and the widths: `(L, D)`, `(L, G, K)`, `(D,)`.
      axes: the logical axis name of each of `shape`.
    """

    kind: str
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]


class Model(NamedTuple):
    """A model is three pure functions over a nested dict of weights.

    Attributes:
      init: `key -> params`, float32 arrays.
      apply: `(params, inputs, **named inputs) -> outputs`; a leaf of `params` is an array or a weight node
        (`adaptlab.leaf`).
      axes: `() -> axes`, the tree of `params` with a tuple of logical axis names for each array.
      slots: `() -> {path: Slot}`, where computation may be added. A leaf of `params` at any other new path is an error.
      intermediates: `(params, inputs, *, kinds, **named inputs) -> {kind: array}`, what `apply` computes on its way
        from the same arguments; None where nothing is recorded. The kinds:
        "hidden": the residual stream in front of each layer and behind the last, `[L + 1, B, T, D]` in the compute
        dtype: entry 0 is the embedded input, entry l what layer l leaves, and a final norm is not applied.
        "attention": the probabilities, `[L, B, H, T, S]` in float32. The T queries are the text's; of the S keys the
        last T are, those of a prompt or prefix stand in front.
        "router" (of a mixture of experts only): the router's logits, `[L, B, T, E]` in float32.
        "dropped" (the same): the share of a token's experts that had no room for it, `[L, B, T]` in float32.
    """

    init: Callable[[Any], PyTree]
    apply: Callable[..., Any]
    axes: Callable[[], PyTree]
    slots: Callable[[], dict[str, Slot]] = dict
    intermediates: Callable[..., dict[str, Any]] | None = None


def placed(model: Model, placement: Placement) -> Model:
    """Return the model computing on a placement's mesh, whoever applies it."""
    recorded = None if model.intermediates is None else on(placement, model.intermediates)
    return model._replace(apply=on(placement, model.apply), intermediates=recorded)


class Pretrained(NamedTuple):
    """A model with weights that somebody trained.

    Attributes:
      name: what the model is called in tables.
      model: its functions.
      load: `() -> params`, NumPy arrays, read and checked tensor by tensor.
      fingerprint: SHA-256 of the weight files, in hexadecimal; of a quantised base, of its rounded weights.
      context: the longest sequence, in tokens, it was trained on.
      stored: `path -> weight node` with the quantised blocks that the file has, or None.
      quantized: how it was quantised, and "of" what: the fingerprint of the weight files; None if it was not.
      parts: `() -> params` as `load`, but of arrays that are read in parts as they are put on devices
        (`adaptlab.shard.Stored`), so that a host never has more than its own; None where they cannot be.
    """

    name: str
    model: Model
    load: Callable[[], PyTree]
    fingerprint: str
    context: int
    stored: Callable[[str], Any] | None = None
    quantized: Mapping[str, Any] | None = None
    parts: Callable[[], PyTree] | None = None
