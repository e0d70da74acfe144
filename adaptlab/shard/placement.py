"""Where arrays live: models name logical axes, two tables say on which mesh axes each lies."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from jax.sharding import Mesh, NamedSharding, PartitionSpec

from adaptlab import tree

__all__ = ["COMPUTE", "REST", "ZERO1", "Placement", "Rules", "mesh_axes"]

Rules = Mapping[str, str | tuple[str, ...] | None]
"""Logical axis -> mesh axis, several of them (the first is the outermost), or None: a copy on every device."""

REST: Rules = {
    "batch": ("data", "expert"),
    "bottleneck": None,
    "copies": "tensor",  # of what several products read, one for each device
    "embed": "fsdp",
    "embed_vector": None,
    "experts": "expert",
    "ffn": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "layers": "stage",
    "rank": None,
    "time": "context",
    "vocab": "tensor",
}
"""Where parameters, deltas and the optimiser's moments rest.

"embed_vector" is the width of a norm's scale or a bias, too small to share out. "batch" and "time" are those of
activations that are read off a table while it rests: there `fsdp` is the embedding's and not the batch's.
"""

ZERO1: Rules = {**REST, "embed": ("fsdp", "data")}
"""Where moments rest if they are shared out over `data` too, unlike what they belong to (ZeRO-1, arXiv:1910.02054)."""

COMPUTE: Rules = {
    **REST,
    "batch": ("data", "fsdp", "expert"),
    "embed": None,
    "expert_batch": ("data", "fsdp"),  # the batch where experts compute, which have its other axis
}
"""Where the weights and the activations of a layer are while it computes."""


Moments = Literal["zero1", "host"]
"""Where the optimiser's state may rest other than beside what it belongs to, see `Placement.with_moments`."""


class Placement(NamedTuple):
    """Where a model lives.

    Attributes:
      mesh: the devices, see `make_mesh`.
      axes: the model's logical axes, a tree of tuples of names.
      rest: logical axis -> mesh axes of what rests.
      compute: logical axis -> mesh axes of what computes.
      moments: logical axis -> mesh axes of the optimiser's state, such as `ZERO1`; None is as what it belongs to.
      moments_on_host: whether the optimiser's state rests in the host's memory ("pinned_host") and visits the devices
        for each update.
    """

    mesh: Mesh
    axes: Any
    rest: Rules = REST
    compute: Rules = COMPUTE
    moments: Rules | None = None
    moments_on_host: bool = False

    @property
    def replicated(self) -> NamedSharding:
        """A copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def batch(self) -> NamedSharding:
        """The leading axis over the mesh axes of "batch"."""
        return NamedSharding(self.mesh, PartitionSpec(self._part(self.compute, "batch")))

    def size(self, name: str) -> int:
        """Over how many devices a logical axis is split while computing."""
        return math.prod(self.mesh.shape[axis] for axis in mesh_axes(self.compute, name))

    def with_moments(self, where: str | None) -> "Placement":
        """Return this placement with the optimiser's state elsewhere.

        Args:
          where: "zero1" shares it out over `data` too (ZeRO-1, arXiv:1910.02054), "host" keeps it in the host's memory;
            None leaves it beside what it belongs to.

        Raises:
          ValueError: another word.
        """
        if where not in (None, *get_args(Moments)):
            raise ValueError(f"moments={where!r} is not one of {[None, *get_args(Moments)]}.")
        return self._replace(moments=ZERO1 if where == "zero1" else None, moments_on_host=where == "host")

    def shardings(self, axes: Any, arrays: Any, rules: Rules | None = None) -> Any:
        """Return where each array of a tree rests, from its logical axes.

        Args:
          axes: a tuple of names for each array.
          arrays: the tree, or its shapes.
          rules: other than `rest`.

        Raises:
          ValueError: an axis without a rule, two axes of one array on one mesh axis, or a size that the mesh axes
            do not divide.
        """
        names = tree.flatten(axes, is_leaf=lambda x: isinstance(x, tuple))
        own = self.rest if rules is None else rules
        return tree.map_with_path(lambda path, x: self._sharding(path, names[path], x.shape, own), arrays)

    def _sharding(self, path: str, names: Sequence[str | None], shape: Sequence[int], rules: Rules) -> NamedSharding:
        if unknown := [n for n in names if n is not None and n not in rules]:
            raise ValueError(f"{path}: no rule for the logical axes {unknown}; rules exist for {sorted(rules)}.")
        spec = [self._part(rules, n) for n in names]
        used = [axis for n in names for axis in mesh_axes(rules, n)]
        if len(set(used)) < len(used):
            raise ValueError(
                f"{path}: two of the axes {tuple(names)} live on one mesh axis ({self._said(rules, names)})."
            )
        for size, name in zip(shape, names, strict=True):
            axes = mesh_axes(rules, name)
            parts = math.prod(self.mesh.shape[axis] for axis in axes)
            if size % parts:
                over = " x ".join(f"{axis}={self.mesh.shape[axis]}" for axis in axes)
                choices = [d for d in range(1, self.mesh.size + 1) if size % d == 0]
                raise ValueError(
                    f"{path}: {name}={size} does not divide over {over}; choose {' x '.join(axes)} from {choices}."
                )
        return NamedSharding(self.mesh, PartitionSpec(*spec))

    def _part(self, rules: Rules, name: str | None) -> Any:
        """The entry of a logical axis in a PartitionSpec; mesh axes of size 1 are not mentioned."""
        axes = tuple(axis for axis in mesh_axes(rules, name) if self.mesh.shape[axis] > 1)
        return None if not axes else axes[0] if len(axes) == 1 else axes

    def _said(self, rules: Rules, names: Sequence[str | None]) -> str:
        return ", ".join(f"{n} -> {' x '.join(mesh_axes(rules, n)) or None}" for n in names)


def mesh_axes(rules: Rules, name: str | None) -> tuple[str, ...]:
    """Return the mesh axes of a logical axis, as a tuple."""
    found = None if name is None else rules[name]
    return () if found is None else (found,) if isinstance(found, str) else tuple(found)
