"""From a checkpoint's tensors to our tree and back: one table per family, matched by exact name and shape."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from adaptlab import tree
from adaptlab.shard import Stored

__all__ = ["Entry", "Index", "assemble", "disassemble", "match"]

Index = tuple[slice, ...]


class Entry(NamedTuple):
    """One row of the table.

    Attributes:
      path: where the tensor stands in our tree.
      hf: its name in Hugging Face checkpoints; "{}" stands for the layer, and then the leaf is a stack of layers; a
        second one stands for the expert, and then it is a stack of stacks.
      gguf: its name in GGUF files.
      transpose: whether the checkpoint keeps `[output, input]` where we keep `[input, output]`.
      rotary_heads: how many rotary heads the rows hold (llama.cpp interleaves their halves), or 0.
      part: which of the `parts` equal parts of the tensor's outputs this is.
      parts: how many of our arrays the checkpoint keeps as one tensor.
    """

    path: str
    hf: str
    gguf: str = ""
    transpose: bool = True
    rotary_heads: int = 0
    part: int = 0
    parts: int = 1


def match(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], where: str) -> None:
    """Check that a checkpoint holds exactly the expected tensors.

    Raises:
      ValueError: names what is missing (-), what is extra (+) and what has another shape (!), all in one message.
    """
    problems = [f"  - {name} {expected[name]}: missing" for name in expected if name not in found]
    problems += [f"  + {name} {found[name]}: not part of this model" for name in found if name not in expected]
    problems += [
        f"  ! {name}: expected {shape}, found {found[name]}"
        for name, shape in expected.items()
        if name in found and tuple(found[name]) != tuple(shape)
    ]
    if problems:
        raise ValueError(
            f"{where} does not fit the model its header describes ({len(expected)} tensors expected, "
            f"{len(found)} found):\n" + "\n".join(problems)
        )


def _places(name: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Return `{tensor: its index}` of a leaf: one tensor for each layer of a stack, and for each expert of a layer."""
    return {name.format(*index): index for index in np.ndindex(shape[: name.count("{}")])}


def _stored_shape(entry: Entry, one: tuple[int, ...]) -> tuple[int, ...]:
    one = (*one[:-1], one[-1] * entry.parts)
    return one[::-1] if entry.transpose else one


def assemble(
    entries: Iterable[Entry],
    name_of: Callable[[Entry], str],
    shapes: Mapping[str, tuple[int, ...]],
    found: Mapping[str, tuple[int, ...]],
    read: Callable[[str, Entry, Index], np.ndarray],
    where: str,
) -> dict[str, Any]:
    """Return our tree of a checkpoint's tensors, each read when, and as far as, it is asked for.

    Args:
      entries: the family's table.
      name_of: `entry -> name` in this format.
      shapes: our tree's shapes by path.
      found: the checkpoint's shapes by name.
      read: `(name, entry, index) -> array`: the part of a tensor at a tuple of slices, in the checkpoint's layout.
      where: the file, for errors.

    Returns:
      The nested dict of float32 arrays, as `Stored` ones: `numpy.asarray` reads one.
    """
    plan = {entry: _places(name_of(entry), shapes[entry.path]) for entry in entries}
    expected = {
        name: _stored_shape(entry, shapes[entry.path][len(index) :])
        for entry, places in plan.items()
        for name, index in places.items()
    }
    match(expected, found, where)
    leaves = {e.path: _stored(e, {i: n for n, i in at.items()}, shapes[e.path], read) for e, at in plan.items()}
    return tree.unflatten(leaves)


def _stored(
    entry: Entry,
    tensors: Mapping[tuple[int, ...], str],
    shape: tuple[int, ...],
    read: Callable[[str, Entry, Index], np.ndarray],
) -> Stored:
    """One leaf, of one tensor for each index of its leading axes."""
    lead = len(next(iter(tensors)))
    first = entry.part * shape[-1]  # where our part of a tensor's outputs begins

    def part(index: Index) -> np.ndarray:
        bounds = [range(*one.indices(size)) for one, size in zip(index, shape, strict=True)]
        rest = [slice(b.start, b.stop) for b in bounds[lead:]]
        rest[-1] = slice(first + rest[-1].start, first + rest[-1].stop)
        inside = tuple(reversed(rest) if entry.transpose else rest)
        out = np.empty([len(b) for b in bounds], np.float32)
        for place in np.ndindex(*out.shape[:lead]):
            one = read(tensors[tuple(b[i] for b, i in zip(bounds, place, strict=False))], entry, inside)
            out[place] = one.T if entry.transpose else one
        return out

    return Stored(tuple(shape), np.dtype(np.float32), part)


def disassemble(entries: Iterable[Entry], params: Any) -> dict[str, np.ndarray]:
    """Undo `assemble` for the Hugging Face layout: `{name: array}` of the entries that `params` has.

    Raises:
      ValueError: a leaf of `params` that no entry names; lists them.
    """
    flat = tree.flatten(params)
    entries = [entry for entry in entries if entry.path in flat]
    if homeless := sorted(flat.keys() - {entry.path for entry in entries}):
        raise ValueError(f"A checkpoint of this family has no place for {homeless}; merge or drop what was added.")
    parts: dict[str, list[np.ndarray]] = {}
    tensors = {}
    for entry in sorted(entries, key=lambda entry: entry.part):
        array = np.asarray(flat[entry.path])
        for name, index in _places(entry.hf, array.shape).items():
            parts.setdefault(name, []).append(array[index])
            if len(parts[name]) == entry.parts:
                whole = np.concatenate(parts[name], axis=-1)
                tensors[name] = np.ascontiguousarray(whole.T if entry.transpose else whole)
    return tensors
