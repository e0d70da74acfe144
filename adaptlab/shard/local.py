"""What one process has of global arrays: host arrays in, host arrays out. On one process, plain `jax.device_put`."""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding

__all__ = ["Stored", "fetch", "local_rows", "place", "put", "put_rows"]

Index = tuple[slice, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """An array that lies in files and is read in parts, as its devices need them: a leaf like any other.

    Attributes:
      shape: the whole array's.
      dtype: its dtype.
      read: `index -> array`: the part at a tuple of slices, one per axis.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[Index], np.ndarray]

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """The whole array; NumPy calls it."""
        return np.asarray(self[...], dtype)

    def __getitem__(self, index: Any) -> np.ndarray:
        """Read the part at an integer, a slice, an ellipsis, or a tuple of them; integers take their axes away."""
        given = index if isinstance(index, tuple) else (index,)
        at = given.index(...) if ... in given else len(given)
        free = (slice(None),) * (self.ndim - len(given) + (... in given))
        full = (*given[:at], *free, *given[at + 1 :])
        part = self.read(tuple(slice(i, i + 1) if isinstance(i, int) else i for i in full))
        return part[tuple(0 if isinstance(i, int) else slice(None) for i in full)]


def put(arrays: Any, sharding: NamedSharding) -> Any:
    """Put host arrays that every process has whole on the devices; each process hands over its devices' parts.

    `jax.device_put` would first compare the arrays of all processes, which is a meeting of its own for every scalar.

    Args:
      arrays: a tree of host arrays, and of `Stored` ones, of which only the parts needed here are read.
      sharding: where all of them go.
    """
    return jax.tree.map(lambda x: _put(x, sharding), arrays)


def place(arrays: Any, shardings: Any) -> Any:
    """Put host arrays on the mesh, each with the sharding that stands in its place; see `put`."""
    return jax.tree.map(_put, arrays, shardings)


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, Stored):
        return _callback(x.shape, sharding, x.read)
    if jax.process_count() == 1:
        return jax.device_put(x if isinstance(x, jax.Array) else np.asarray(x), sharding)
    host = np.asarray(x)
    return _callback(host.shape, sharding, lambda index: host[index])


def _callback(shape: tuple[int, ...], sharding: NamedSharding, read: Callable[[Index], np.ndarray]) -> jax.Array:
    """An array from its parts; devices that hold the same part share one reading of it."""
    parts: dict[str, np.ndarray] = {}

    def part(index: Any) -> np.ndarray:
        key = str(index)
        if key not in parts:
            parts[key] = read(index)
        return parts[key]

    with jax.transfer_guard_host_to_device("allow"):  # it is meant, as `jax.device_put` is
        return jax.make_array_from_callback(shape, sharding, part)


def local_rows(sharding: NamedSharding, rows: int, devices: Iterable[jax.Device] | None = None) -> np.ndarray:
    """Return which of the rows `0 … rows-1` of a leading axis a process's devices hold, ascending.

    Args:
      sharding: of the axis.
      rows: its length.
      devices: the devices; None means those of this process.

    Raises:
      ValueError: the mesh does not divide the rows.
    """
    if rows % (parts := _parts(sharding)):
        raise ValueError(
            f"a batch of {rows} rows does not divide over the {parts} parts of {sharding.spec}; choose a batch size "
            f"that is a multiple of {parts}, or other sizes of the mesh."
        )
    mine = set(sharding.addressable_devices if devices is None else devices)
    held = [index[0] for device, index in sharding.devices_indices_map((rows,)).items() if device in mine]
    return np.unique(np.concatenate([np.arange(rows)[part] for part in held]))


def _parts(sharding: NamedSharding) -> int:
    axes = sharding.spec[0] if len(sharding.spec) else None
    names = () if axes is None else (axes,) if isinstance(axes, str) else tuple(axes)
    return int(np.prod([sharding.mesh.shape[name] for name in names], dtype=np.int64))


def put_rows(parts: Any, rows: np.ndarray, count: int, sharding: NamedSharding) -> Any:
    """Put a batch on the devices of which each process has its own rows.

    Args:
      parts: a tree of arrays `[len(rows), …]`: of a batch's arrays the rows that this process's devices hold.
      rows: which these are, see `local_rows`.
      count: the rows of the whole batch.
      sharding: of the batch.
    """

    if jax.process_count() == 1:
        return jax.device_put(parts, sharding)

    def one(x: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            first, last, _ = index[0].indices(count)
            start = int(np.searchsorted(rows, first))
            return x[(slice(start, start + last - first), *index[1:])]

        return _callback((count, *x.shape[1:]), sharding, part)

    return jax.tree.map(one, parts)


def fetch(arrays: Any) -> Any:
    """Return arrays as NumPy's, whole, on every process: for small ones. A meeting of all processes."""
    with jax.transfer_guard("allow"):  # it is meant, as `jax.device_get` is
        here = jax.tree.map(lambda x: x if _readable(x) else multihost_utils.process_allgather(x, tiled=True), arrays)
        return jax.device_get(here)


def _readable(x: Any) -> bool:
    return not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated
