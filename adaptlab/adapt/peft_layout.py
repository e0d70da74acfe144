"""How PEFT lays out an adapter: which module of Hugging Face's class holds which of our weights, and under what name.

Letters: L layers, D input width, F output width, R rank.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import leaf

__all__ = [
    "PREFIX",
    "Checkpoint",
    "Module",
    "Row",
    "holding",
    "layer_names",
    "modules_of",
    "shape_of",
    "split_outputs",
    "spread",
    "stack_layers",
    "target_names",
    "unwhole",
    "whole",
]

PREFIX = "base_model.model."
"""What PEFT puts in front of a module's name."""


class Row(Protocol):
    """A row of a family's table of tensors (`adaptlab.models`)."""

    @property
    def path(self) -> str: ...
    @property
    def hf(self) -> str: ...
    @property
    def transpose(self) -> bool: ...
    @property
    def part(self) -> int: ...


class Checkpoint(NamedTuple):
    """How Hugging Face names the tensors of a base.

    Attributes:
      rows: of the table, with the names that the class for the task has.
      task: PEFT's task_type, e.g. "CAUSAL_LM".
      name: the folder or repository of the base, which PEFT's users load it from; None leaves it open.
    """

    rows: Sequence[Row]
    task: str
    name: str | None = None


class Module(NamedTuple):
    """A module of the checkpoint: a linear map, a table or a norm.

    Attributes:
      name: its name; "{}" stands for the layer.
      weight: the paths of ours that its weight holds, side by side in its outputs.
      bias: the same of its bias.
      transpose: whether the checkpoint keeps a matrix as `[output, input]`.
    """

    name: str
    weight: tuple[str, ...]
    bias: tuple[str, ...]
    transpose: bool

    @property
    def stacked(self) -> bool:
        return "{}" in self.name

    @property
    def embedding(self) -> bool:
        return self.weight[0].endswith("/embedding")

    @property
    def norm(self) -> bool:
        return self.weight[0].endswith("/scale")


def modules_of(checkpoint: Checkpoint, base: Mapping[str, Any] | None = None) -> list[Module]:
    """Return the modules of a checkpoint; with a base `{path: weight}`, those that it has."""
    found: dict[str, dict[str, list[Row]]] = {}
    for row in checkpoint.rows:
        name, _, kind = row.hf.rpartition(".")
        found.setdefault(name, {}).setdefault(kind, []).append(row)
    made = []
    for name, kinds in found.items():
        weight, bias = (sorted(kinds.get(kind, ()), key=lambda row: row.part) for kind in ("weight", "bias"))
        if base is None or weight[0].path in base:
            made.append(Module(name, tuple(r.path for r in weight), tuple(r.path for r in bias), weight[0].transpose))
    return made


def target_names(chosen: Sequence[Module], every: Sequence[Module], base: Mapping[str, Any]) -> list[str]:
    """Return PEFT's names of modules: the shortest endings that no other module has, or else one name per layer."""
    taken, names = {module.name for module in chosen}, {}
    others = [module.name for module in every if module.name not in taken]
    for module in chosen:
        words = module.name.rpartition("{}.")[2].split(".")
        endings = [".".join(words[i:]) for i in reversed(range(len(words)))]
        free = [ending for ending in endings if not any(other.endswith(ending) for other in others)]
        names |= dict.fromkeys(free[:1] or layer_names(module, base))
    return list(names)


def spread(module: Module, array: Any) -> Iterator[tuple[str, Any]]:
    """Yield `(module's name, array)`, for each layer of a stack."""
    if not module.stacked:
        yield module.name, array
        return
    for i in range(array.shape[0]):
        yield module.name.format(i), array[i]


def layer_names(module: Module, base: Mapping[str, Any]) -> list[str]:
    """Return a module's name, or its name in each layer."""
    if not module.stacked:
        return [module.name]
    return [module.name.format(i) for i in range(shape_of(module.weight[0], base)[0])]


def shape_of(path: str, base: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape of what a weight of the base stands for."""
    return jax.eval_shape(leaf.dense, base[path]).shape


def stack_layers(
    module: Module, suffix: str, tensors: Mapping[str, Any], base: Mapping[str, Any], absent: Any = None
) -> Any:
    """Return the stack of a module's tensors of a kind, and None if it has none.

    Args:
      module: the module.
      suffix: what follows its name, e.g. ".lora_A.weight".
      tensors: `{name without PEFT's prefix: tensor}`.
      base: `{path: weight}`.
      absent: `(like one that is there) -> tensor` of a layer that has none; None makes that an error. Tensors of
        different ranks are filled up with zeros.

    Raises:
      ValueError: a layer that has none.
    """
    names = [f"{name}{suffix}" for name in layer_names(module, base)]
    there = [tensors[name] for name in names if name in tensors]
    if not there:
        return None
    if absent is None and (missing := [name for name in names if name not in tensors]):
        raise ValueError(f"The adapter has {suffix!r} of some layers only: {missing} are missing, and every layer has.")
    largest = tuple(max(sizes) for sizes in zip(*(x.shape for x in there), strict=True))
    like = np.zeros(largest, np.float32)
    found = [tensors[name] if name in tensors else absent(like) for name in names] if absent else there
    padded = [jnp.pad(jnp.asarray(x, jnp.float32), [(0, n - m) for n, m in zip(largest, x.shape)]) for x in found]  # noqa: B905
    return jnp.stack(padded) if module.stacked else padded[0]


def split_outputs(module: Module, array: Any, base: Mapping[str, Any]) -> dict[str, Any]:
    """Return `{path: its part}` of an array `[…, F]` over all outputs of a module."""
    widths = [shape_of(path, base)[-1] for path in module.weight]
    ends = np.cumsum(widths)[:-1].tolist()
    return dict(zip(module.weight, jnp.split(array, ends, axis=-1), strict=True))


def whole(module: Module, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Return `{name: tensor}` of all a module has, as a checkpoint keeps it."""
    tensors = {}
    for kind, paths in (("weight", module.weight), ("bias", module.bias)):
        arrays = [np.asarray(leaf.dense(params[path])) for path in paths if path in params]
        if not arrays:
            continue
        joined = np.concatenate(arrays, axis=-1)
        if module.transpose and kind == "weight" and joined.ndim - module.stacked == 2:
            joined = joined.swapaxes(-1, -2)
        tensors |= {f"{name}.{kind}": x for name, x in spread(module, joined)}
    return tensors


def unwhole(module: Module, tensors: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """Undo `whole`: `{path: array}` of what is there; a layer that is not stays as the base has it."""
    own, found = whole(module, base), {}
    for kind, paths in (("weight", module.weight), ("bias", module.bias)):
        names = [name for name in own if name.endswith(f".{kind}")]
        if not any(name in tensors for name in names):
            continue
        arrays = [jnp.asarray(tensors.get(name, own[name]), jnp.float32) for name in names]
        joined = jnp.stack(arrays) if module.stacked else arrays[0]
        if module.transpose and kind == "weight" and joined.ndim - module.stacked == 2:
            joined = joined.swapaxes(-1, -2)
        parts = jnp.split(joined, len(paths), axis=-1)
        found |= dict(zip(paths, parts, strict=True))
    return found


def holding(modules: Iterable[Module], paths: Iterable[str]) -> list[Module]:
    """Return the modules that hold any of these paths."""
    wanted = set(paths)
    return [module for module in modules if wanted & {*module.weight, *module.bias}]
