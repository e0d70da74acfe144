"""SkyPilot: a managed job, which it recovers on whatever cloud has the machines."""

from adaptlab.config import ConfigError
from adaptlab.launch.job import EXIT_PREEMPTED, Job, Rendered, Target
from adaptlab.launch.render import render
from adaptlab.launch.tpu import RUNTIMES

__all__ = ["skypilot"]


def skypilot(
    accelerators: str,
    bucket: str,
    *,
    nodes: int = 1,
    infra: str | None = None,
    extra: str = "tpu",
    spot: bool = True,
) -> Target:
    """A managed job of SkyPilot's on nodes with GPUs, one process each, or on a TPU slice.

    Args:
      accelerators: such as tpu-v5litepod-16, A100:8 or H100:8.
      bucket: with its scheme, such as gs://lab-runs or s3://lab-runs; mounted at the job's `out`.
      nodes: machines; a TPU slice is one, whatever its hosts.
      infra: a cloud, region or zone, such as gcp/us-central1; null lets SkyPilot choose.
      extra: what is installed besides the locked packages: tpu, cuda, or cpu for nothing.
      spot: use spot machines.

    Raises:
      ConfigError: an extra that is none, a bucket without a scheme, a TPU of no known generation, or several of them.
    """
    if extra not in ("tpu", "cuda", "cpu"):
        raise ConfigError(f"target.extra={extra!r} must be tpu, cuda or cpu.")
    if "://" not in bucket:
        raise ConfigError(f"target.bucket={bucket!r} needs its scheme, such as gs://{bucket}.")
    generation = accelerators.removeprefix("tpu-").split("-")[0]
    tpu = accelerators.startswith("tpu-")
    if tpu and generation not in RUNTIMES:
        raise ConfigError(f"target.accelerators={accelerators!r}: its generation is none of {sorted(RUNTIMES)}.")
    if nodes < 1 or (tpu and nodes > 1):
        raise ConfigError(f"target.nodes={nodes} must be 1 or more, and 1 of a TPU slice.")
    values = {
        "accelerators": accelerators,
        "runtime": RUNTIMES[generation] if tpu else None,
        "bucket": bucket,
        "infra": infra,
        "extra": extra,
        "spot": spot,
        "nodes": nodes,
        "preempted": EXIT_PREEMPTED,
    }

    def rendered(job: Job) -> Rendered:
        secrets = [word for name in job.secrets for word in ("--secret", name)]
        submit = ("sky", "jobs", "launch", "--yes", f"--name={job.name}", *secrets, f"{job.folder}/task.yaml")
        run = job.run("scripts/host", extra) if tpu else _with_peers(job, extra)
        return Rendered({"task.yaml": render("skypilot.yaml", job=job, run=run, **values)}, submit)

    return Target(rendered, secrets_from_here=True)


def _with_peers(job: Job, extra: str) -> str:
    """The command, with what SkyPilot tells each node of the others: JAX does not know that cluster."""
    alone = job._replace(hosts=False).run("scripts/host", extra)
    if not job.hosts:
        return alone
    return (
        f'{alone} hosts.processes="$SKYPILOT_NUM_NODES" hosts.process="$SKYPILOT_NODE_RANK" '
        'hosts.coordinator="$(head -n 1 <<<"$SKYPILOT_NODE_IPS"):8482"'
    )
