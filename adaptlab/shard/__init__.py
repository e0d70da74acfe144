"""Named meshes: models name logical axes, two tables say on which mesh axes each rests and computes.

XLA's partitioner derives the rest from where arrays rest and from what layers say of their activations and weights.
"""

from adaptlab.shard.computing import (
    computing,
    computing_placement,
    constrain,
    constrain_rest,
    gather,
    on,
    on_one_cpu,
    pin,
)
from adaptlab.shard.local import Stored, fetch, local_rows, place, put, put_rows
from adaptlab.shard.mesh import AXES, make_mesh
from adaptlab.shard.placement import COMPUTE, REST, ZERO1, Moments, Placement, Rules, mesh_axes

__all__ = [
    "AXES",
    "COMPUTE",
    "REST",
    "ZERO1",
    "Moments",
    "Placement",
    "Rules",
    "Stored",
    "computing",
    "computing_placement",
    "constrain",
    "constrain_rest",
    "fetch",
    "gather",
    "local_rows",
    "make_mesh",
    "mesh_axes",
    "on",
    "on_one_cpu",
    "pin",
    "place",
    "put",
    "put_rows",
]
