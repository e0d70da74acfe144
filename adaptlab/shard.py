"""Named meshes: models name logical axes, one table says on which mesh axis each lives.

`data` splits the batch, `tensor` splits heads, feed-forward and vocabulary (Megatron's column and row pairs,
arXiv:1909.08053), `replica` splits the runs of a sweep. XLA's partitioner derives the rest from where the arrays rest.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from adaptlab import tree

__all__ = ["RULES", "Placement", "make_mesh", "place"]

RULES: Mapping[str, str | None] = {
    "batch": "data",
    "bottleneck": None,
    "embed": None,
    "ffn": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "layers": None,
    "rank": None,
    "vocab": "tensor",
}
"""Logical axis -> mesh axis, or None for a copy on every device."""


def make_mesh(*, data: int = 1, tensor: int = 1, replica: int = 1) -> Mesh:
    """Return a mesh of `replica × data × tensor` devices.

    Args:
      data: parts of a batch.
      tensor: parts of a matrix.
      replica: parts of a sweep: runs side by side that share nothing but the base.

    Raises:
      ValueError: the sizes do not use all devices JAX sees.
    """
    devices, sizes = jax.device_count(), (replica, data, tensor)
    if math.prod(sizes) != devices:
        raise ValueError(
            f"mesh replica={replica} x data={data} x tensor={tensor} needs {math.prod(sizes)} devices and JAX sees "
            f"{devices} ({jax.devices()[0].platform}); choose sizes whose product is {devices}."
        )
    return jax.make_mesh(sizes, ("replica", "data", "tensor"), axis_types=(AxisType.Auto,) * 3)


class Placement(NamedTuple):
    """Where a model lives.

    Attributes:
      mesh: the devices.
      axes: the model's logical axes, a tree of tuples of names.
      rules: logical axis -> mesh axis.
    """

    mesh: Mesh
    axes: Any
    rules: Mapping[str, str | None] = RULES

    @property
    def replicated(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """The leading axis over the mesh axis of "batch"."""
        return NamedSharding(self.mesh, PartitionSpec(self.rules["batch"]))

    def shardings(self, axes: Any, arrays: Any) -> Any:
        """Return the sharding of each array in a tree from its logical axes.

        Raises:
          ValueError: an axis without a rule, two axes of one array on one mesh axis, or a size that the mesh axis
            does not divide.
        """
        names = tree.flatten(axes, is_leaf=lambda x: isinstance(x, tuple))
        return tree.map_with_path(lambda path, x: self._sharding(path, names[path], x.shape), arrays)

    def _sharding(self, path: str, names: Sequence[str | None], shape: Sequence[int]) -> NamedSharding:
        if unknown := [n for n in names if n is not None and n not in self.rules]:
            raise ValueError(f"{path}: no rule for the logical axes {unknown}; rules exist for {sorted(self.rules)}.")
        spec = [None if n is None else self.rules[n] for n in names]
        used = [axis for axis in spec if axis is not None]
        if len(set(used)) < len(used):
            raise ValueError(f"{path}: two of the axes {tuple(names)} live on one mesh axis ({spec}).")
        for size, axis, name in zip(shape, spec, names, strict=True):
            if axis is not None and size % self.mesh.shape[axis]:
                raise ValueError(
                    f"{path}: {name}={size} does not divide over {axis}={self.mesh.shape[axis]}; choose "
                    f"{axis} from {[d for d in range(1, jax.device_count() + 1) if size % d == 0]}."
                )
        return NamedSharding(self.mesh, PartitionSpec(*spec))


def place(arrays: Any, shardings: Any) -> Any:
    """Put host arrays on the mesh; each process hands over only the parts that its own devices hold."""

    def put(x: Any, sharding: NamedSharding) -> jax.Array:
        x = np.asarray(x)
        if jax.process_count() == 1:
            return jax.device_put(x, sharding)
        return jax.make_array_from_callback(x.shape, sharding, lambda index: x[index])

    return jax.tree.map(put, arrays, shardings)
