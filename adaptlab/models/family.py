"""What a family of models is to its checkpoints: one table of tensors, and the reader and writer of its sizes."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from adaptlab.models.model import Model
from adaptlab.models.weights import Entry

__all__ = ["Family", "refuse"]


class Family(NamedTuple):
    """One family, e.g. `adaptlab.models.bert_family.BERT`.

    Attributes:
      name: its `model_type` in a Hugging Face config.json and its architecture in a GGUF header.
      shape: the class of its sizes.
      model: `(shape, **options) -> Model`.
      read: `(config, where) -> shape`; refuses what our model does not have.
      write: `(shape, context, {path: shape}) -> (config, prefix)`: what transformers reads, for the weights there are,
        and what the names of all tensors but the head's begin with.
      entries: `shape -> table`; may list tensors that not every model of this shape has, such as a head.
      context: `config -> ` the longest sequence.
      prefix: what the names may begin with: a model with a head was saved.
      unread: a regular expression of whole tensor names that a checkpoint may hold and our model does not need.
      classifier: `(shape, *, classes, pooling, **options) -> Model`, or None.
      read_gguf: `(header, tensor names and shapes) -> shape`, or None: not read from GGUF.
      routed: whether it is a mixture of experts, whose model takes a `capacity_factor`.
    """

    name: str
    shape: type
    model: Callable[..., Model]
    read: Callable[[dict[str, Any], Path], Any]
    write: Callable[[Any, int, Mapping[str, tuple[int, ...]]], tuple[dict[str, Any], str]]
    entries: Callable[[Any], list[Entry]]
    context: Callable[[Mapping[str, Any]], int]
    prefix: str = ""
    unread: str = ""
    classifier: Callable[..., Model] | None = None
    read_gguf: Callable[[Callable[..., Any], Mapping[str, tuple[int, ...]]], Any] | None = None
    routed: bool = False


def refuse(asked: Mapping[str, Any], where: Path, name: str) -> None:
    """Raise ValueError for settings of a config (those that are not false, empty or None) which our model ignores."""
    if found := {key: value for key, value in asked.items() if value}:
        raise ValueError(f"{where} asks for {found}, which adaptlab's {name} does not have.")
