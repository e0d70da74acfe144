"""The members of a study on what the machine has: in this process, or in one for each part of a CPU."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax

from adaptlab import hosts
from adaptlab.runtime import cpu_devices_given
from adaptlab.study.crew import crew
from adaptlab.study.halving import Halving
from adaptlab.study.lab import Lab
from adaptlab.study.members import Member
from adaptlab.study.run import Task, announce, run_tasks
from adaptlab.study.settings import Replication

__all__ = ["by_processes", "run_members"]


def by_processes(replication: Replication, mesh: Mapping[str, Any]) -> bool:
    """Whether the parts of a CPU are processes: each run has one device, and nobody says how runs are arranged.

    Args:
      replication: how runs that differ only in numbers are run together.
      mesh: the config of a run's own.
    """
    said = replication.how != "auto" or replication.slots is not None or cpu_devices_given()
    one = all(size in (1, None) for axis, size in mesh.items() if axis != "_target_")
    return not said and one and hosts.count() == 1 and jax.default_backend() == "cpu"


def run_members(
    lab: Lab,
    members: Iterable[Member],
    folder: Path,
    wandb: Mapping[str, Any],
    replication: Replication = Replication(),  # noqa: B008 (a constant)
    halving: Halving | None = None,
) -> dict[str, dict[str, Any]]:
    """Run the members of a study and return `{name: result}`. Finished ones are not run again.

    Args:
      lab: what they share; if it has been spread over the parts of a CPU (see `open_lab`), each is a process of its
        own, unless something says how runs are arranged.
      members: the runs.
      folder: the study's; each member has `runs/<name>` in it.
      wandb: the settings of the W&B mirror, see `Wandb`.
      replication: how members that differ only in numbers are run together.
      halving: ends the worse runs early, see `Halving`.
    """
    tasks = [Task(m, folder / "runs" / m.name, f"{folder.name}/{m.name}", folder.name, wandb) for m in members]
    alone, text, parts = lab.spread, lab.text, lab.placement.mesh.shape["replica"]
    due = parts > 1 and any(not task.finished for task in tasks)
    if due and alone is not None and text is not None and by_processes(replication, alone["mesh"]):
        announce(lab, tasks)
        with crew(parts) as processes:
            processes.open(alone)
            processes.give(text)
            processes.run(lab, tasks, folder, replication, halving)
    else:
        run_tasks(lab, tasks, folder, replication, halving)
    return {task.member.name: task.result for task in tasks if task.result}
