"""Over which devices the runs of one program are spread."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

__all__ = ["cores", "cpu_devices", "over_all_devices"]

log = logging.getLogger(__name__)

_MOST_CPU_DEVICES = 8  # each holds a copy of the base


def cores() -> set[int]:
    """Return the cores that this process may use."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))


def cpu_devices(runs: int) -> int:
    """Return over how many devices a CPU is split for so many runs of one program: as many as it has cores, at most 8.

    A run on a device of its own has a core of its own, instead of a share of every matrix product.
    """
    return max(1, min(len(cores()), _MOST_CPU_DEVICES, runs))


def over_all_devices(mesh: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a mesh with the devices that its other axes leave given to runs, unless it says how many."""
    used = int(np.prod([size for axis, size in mesh.items() if isinstance(size, int) and axis != "replica"]))
    if mesh.get("replica") != 1 or jax.device_count() % used:
        return dict(mesh)
    replica = jax.device_count() // used
    if replica > 1:
        log.info("the runs are spread over %d %s devices", replica, jax.devices()[0].platform)
    return dict(mesh) | {"replica": replica}
