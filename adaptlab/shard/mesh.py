"""One mesh of seven named axes."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

__all__ = ["AXES", "make_mesh"]

AXES = ("replica", "stage", "data", "fsdp", "expert", "context", "tensor")
"""From the outermost, which talks least and may cross slices, to the innermost, whose devices are neighbours."""

_ACROSS_SLICES = ("data", "replica", "stage")


def make_mesh(
    *,
    replica: int = 1,
    stage: int = 1,
    data: int = 1,
    fsdp: int = 1,
    expert: int = 1,
    context: int = 1,
    tensor: int = 1,
    devices: Sequence[Any] | None = None,
) -> Mesh:
    """Return a mesh with all axes of `AXES`; one of the sizes may be -1: what the others leave.

    Devices of several slices (they differ in `slice_index`) are laid out so that only `data`, or failing that
    `replica` and `stage`, crosses from slice to slice.

    Args:
      replica: parts of a sweep: runs side by side that share nothing but the base.
      stage: parts of the depth: a pipeline.
      data: parts of a batch, each with a copy of the weights.
      fsdp: parts of a batch that also share out weights, gradients and the optimiser's state (ZeRO-3,
        arXiv:1910.02054).
      expert: parts of the experts, and of the batch outside of them.
      context: parts of a sequence.
      tensor: parts of heads, feed-forward and vocabulary (arXiv:1909.08053).
      devices: what to use; None is all that JAX sees.

    Raises:
      ValueError: the sizes do not use all devices, or cannot be split between the slices.
    """
    devices = jax.devices() if devices is None else list(devices)
    sizes = {
        "replica": replica,
        "stage": stage,
        "data": data,
        "fsdp": fsdp,
        "expert": expert,
        "context": context,
        "tensor": tensor,
    }
    shape = _filled(sizes, len(devices), devices[0].platform)
    slices = len({getattr(d, "slice_index", 0) for d in devices})
    return Mesh(_laid_out(shape, devices, slices), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def _filled(sizes: Mapping[str, int], devices: int, platform: str) -> dict[str, int]:
    """The sizes with -1 replaced."""
    said = " x ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1) or "with all axes 1"
    open_axes = [axis for axis, size in sizes.items() if size == -1]
    wrong = [axis for axis, size in sizes.items() if size < 1 and size != -1]
    if wrong or len(open_axes) > 1:
        raise ValueError(f"mesh {said}: sizes are at least 1, and one of them at most is -1 (what the others leave).")
    known = math.prod(size for size in sizes.values() if size != -1)
    if open_axes and devices % known == 0:
        return {**sizes, open_axes[0]: devices // known}
    if open_axes or known != devices:
        raise ValueError(
            f"mesh {said} needs {'a multiple of ' if open_axes else ''}{known} devices and JAX sees {devices} "
            f"({platform}); choose sizes of {list(AXES)} whose product is {devices}."
        )
    return dict(sizes)


def _laid_out(shape: Mapping[str, int], devices: Sequence[Any], slices: int) -> np.ndarray:
    """The devices in the mesh's shape, neighbours along the inner axes."""
    across, left = dict.fromkeys(AXES, 1), slices
    for axis in _ACROSS_SLICES:
        across[axis] = math.gcd(left, shape[axis])
        left //= across[axis]
    if left > 1:
        raise ValueError(
            f"{slices} slices cannot be told apart by the axes {list(_ACROSS_SLICES)} of "
            f"{dict(shape)}: make data (or replica, or stage) a multiple of {slices}."
        )
    inside = [shape[axis] // across[axis] for axis in AXES]
    if slices == 1:
        return mesh_utils.create_device_mesh(inside, devices, allow_split_physical_axes=True)
    outside = [across[axis] for axis in AXES]
    return mesh_utils.create_hybrid_device_mesh(inside, outside, devices, allow_split_physical_axes=True)
