"""A process that compiles one step and writes what it found: `python -m adaptlab.plan.worker REQUEST ANSWER`.

In a process of its own a compiler may take its memory with it, talk to nobody's terminal, and die.
"""

import json
import sys
from pathlib import Path
from typing import Any

__all__ = ["measure"]


def main(request: Path, answer: Path) -> None:
    """Read a request, compile, write the answer: facts, or the error that a user can mend."""
    asked = json.loads(request.read_text())
    try:
        said = measure(asked)
    except (ValueError, TypeError) as error:
        if isinstance(error, TypeError):
            raise
        said = {"error": str(error)}
    answer.write_text(json.dumps(said))


def measure(asked: dict[str, Any]) -> dict[str, Any]:
    """Compile a job for its topology and return what the plan is made of, as plain containers.

    Args:
      asked: `job`, the fields of `adaptlab.plan.job.Job`, and `backend`, "tpu" or "cpu".
    """
    import jax

    from adaptlab.plan.collectives import collectives
    from adaptlab.plan.job import Job
    from adaptlab.plan.step import compile_step
    from adaptlab.plan.topology import parse_topology, simulated_coordinates, tpu_devices
    from adaptlab.plan.work import work

    job = Job(**asked["job"])
    topology = parse_topology(job.topology, job.slices)
    described = asked["backend"] == "tpu"
    step = compile_step(job, tpu_devices(topology) if described else jax.devices("cpu")[: topology.chips])
    if described:
        order = list(step.mesh.devices.flat)
        coordinates = [tuple(d.coords)[: len(topology.shape)] for d in order]
        slices = [getattr(d, "slice_index", None) or 0 for d in order]
    else:
        coordinates, slices = simulated_coordinates(topology, [d.id for d in step.mesh.devices.flat])
    facts: dict[str, Any] = {
        "fits": step.fits,
        "refusal": step.refusal,
        "memory": None if step.memory is None else dict(step.memory.kinds),
        "largest": [] if step.memory is None else [buffer._asdict() for buffer in step.memory.largest],
        "held": step.held,
        "parameters": step.parameters,
        "trained": step.trained,
        "model_flops": step.flops,
        "mesh": dict(step.mesh.shape),
        "coordinates": coordinates,
        "seconds": step.seconds,
        "work": None,
        "collectives": [],
    }
    if step.module is not None:
        facts["work"] = work(step.module)._asdict()
        facts["unknown_loops"] = list(step.module.unknown)
        found = collectives(step.module, dict(step.mesh.shape), slices)
        facts["collectives"] = [one._asdict() for one in found]
    return facts


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
