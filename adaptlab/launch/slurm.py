"""Slurm: a batch script that is queued again after a pre-emption or at its time limit."""

from collections.abc import Sequence

from adaptlab.config import ConfigError
from adaptlab.launch.job import EXIT_PREEMPTED, Job, Rendered, Target
from adaptlab.launch.render import render

__all__ = ["slurm"]


def slurm(
    *,
    nodes: int = 1,
    gpus_per_node: int = 8,
    cpus_per_task: int = 8,
    time: str = "24:00:00",
    clone: str | None = None,
    extra: str = "cuda",
    grace_seconds: int = 300,
    flags: Sequence[str] = (),
    setup: Sequence[str] = (),
) -> Target:
    """A Slurm job of one task for each GPU, which is how JAX finds its peers there.

    Slurm sends SIGTERM when it takes the nodes away, and `grace_seconds` before the time limit; the run saves and
    leaves with its own exit code, and the script has Slurm queue the job again, as Slurm does of itself when a node
    fails.

    Args:
      nodes: machines.
      gpus_per_node: and so many tasks; 0 runs one task a node, on CPUs.
      cpus_per_task: cores of each.
      time: the limit of one stretch.
      clone: this project, on a file system that every node sees; null is where the job is submitted.
      extra: what is installed besides the locked packages: cuda, or cpu for nothing.
      grace_seconds: for saving.
      flags: more flags of sbatch, such as `--partition=gpu`.
      setup: lines of shell before anything else, such as `module load cuda`.

    Raises:
      ConfigError: no nodes, or an extra that is none.
    """
    if nodes < 1 or gpus_per_node < 0:
        raise ConfigError(f"target.nodes={nodes} must be 1 or more, target.gpus_per_node={gpus_per_node} not negative.")
    if extra not in ("cuda", "cpu"):
        raise ConfigError(f"target.extra={extra!r} must be cuda or cpu.")
    if (gpus_per_node == 0) != (extra == "cpu"):
        raise ConfigError(f"target.extra={extra!r} and target.gpus_per_node={gpus_per_node} do not go together.")

    def rendered(job: Job) -> Rendered:
        asked: dict[str, str | int] = {
            "job-name": job.name,
            "nodes": nodes,
            "ntasks-per-node": max(1, gpus_per_node),
            **({"gpus-per-node": gpus_per_node} if gpus_per_node else {}),
            "cpus-per-task": cpus_per_task,
            "time": time,
            **({"chdir": clone} if clone else {}),
            "output": f"{job.out}/{job.name}-slurm-%j.log",
            "open-mode": "append",
            "signal": f"TERM@{grace_seconds}",
        }
        values = {
            "job": job,
            "asked": [*(f"--{key}={value}" for key, value in asked.items()), *flags],
            "extra": extra,
            "setup": list(setup),
            "preempted": EXIT_PREEMPTED,
        }
        return Rendered({"job.sbatch": render("slurm.sbatch", **values)}, ("sbatch", f"{job.folder}/job.sbatch"))

    return Target(rendered, secrets_from_here=True)
