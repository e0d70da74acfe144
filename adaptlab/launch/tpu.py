"""Cloud TPU slices: a TPU VM that is asked for now, and a queued resource that is waited for."""

from collections.abc import Sequence
from typing import Any

from adaptlab.config import ConfigError
from adaptlab.launch.job import EXIT_PREEMPTED, Job, Rendered, Target
from adaptlab.launch.render import render

__all__ = ["queued_resource", "tpu_vm"]

RUNTIMES = {
    "v6e": "v2-alpha-tpuv6e",
    "v5p": "v2-alpha-tpuv5",
    "v5litepod": "v2-alpha-tpuv5-lite",
    "v4": "tpu-ubuntu2204-base",
}
"""Generation of an accelerator type -> the software version that Cloud TPU's documentation gives for JAX."""


def tpu_vm(
    accelerator_type: str,
    bucket: str,
    *,
    project: str | None = None,
    zone: str | None = None,
    runtime: str | None = None,
    spot: bool = False,
    keep: bool = False,
    flags: Sequence[str] = (),
) -> Target:
    """A TPU VM, driven over SSH by a script that stays until the job is done.

    Args:
      accelerator_type: such as v5litepod-16, v5p-128, v6e-64.
      bucket: a Cloud Storage bucket, mounted on every host at the job's `out`; the code goes through it too.
      project, zone: null takes gcloud's own defaults.
      runtime: the software version; null takes the one for the generation.
      spot: cheaper, and taken away when somebody pays more.
      keep: leave the slice standing in the end, and pay for it.
      flags: more flags of `gcloud compute tpus tpu-vm create`.

    Raises:
      ConfigError: an accelerator type of no known generation.
    """
    values = _values(accelerator_type, bucket, project, zone, runtime, flags) | {"spot": spot, "keep": keep}

    def rendered(job: Job) -> Rendered:
        given = values | {"job": job, "preempted": EXIT_PREEMPTED, "tell": False}
        files = {"host.sh": render("host.sh", **given), "launch.sh": render("tpu_vm.sh", **given)}
        return Rendered(files, ("bash", f"{job.folder}/launch.sh"))

    return Target(rendered, secrets_from_here=False)


def queued_resource(
    accelerator_type: str,
    bucket: str,
    *,
    project: str | None = None,
    zone: str | None = None,
    runtime: str | None = None,
    slices: int = 1,
    spot: bool = False,
    reserved: bool = False,
    valid_for: str | None = None,
    flags: Sequence[str] = (),
) -> Target:
    """One or several slices from Cloud TPU's queue, whose hosts start the job themselves when they start.

    The script that submits waits, and asks for the slices again when they are taken away. Nothing is lost while it is
    not running: give its command again.

    Args:
      accelerator_type, bucket, project, zone, runtime: see `tpu_vm`.
      slices: several are joined over the data centre's network.
      spot, reserved: what capacity to take; neither takes on-demand capacity.
      valid_for: how long to wait for the slices, such as 12h; null waits for ever.
      flags: more flags of `gcloud compute tpus queued-resources create`.

    Raises:
      ConfigError: an accelerator type of no known generation, no slices, or two sorts of capacity.
    """
    if slices < 1:
        raise ConfigError(f"target.slices={slices} must be 1 or more.")
    if spot and reserved:
        raise ConfigError("target.spot and target.reserved are two sorts of capacity: set one of them.")
    values = _values(accelerator_type, bucket, project, zone, runtime, flags)
    values |= {"slices": slices, "spot": spot, "reserved": reserved, "valid_for": valid_for}

    def rendered(job: Job) -> Rendered:
        given = values | {"job": job, "preempted": EXIT_PREEMPTED, "tell": True}
        files = {"host.sh": render("host.sh", **given), "launch.sh": render("queued_resource.sh", **given)}
        return Rendered(files, ("bash", f"{job.folder}/launch.sh"))

    return Target(rendered, secrets_from_here=False)


def _values(
    accelerator_type: str, bucket: str, project: str | None, zone: str | None, runtime: str | None, flags: Sequence[str]
) -> dict[str, Any]:
    generation = accelerator_type.split("-")[0]
    if runtime is None and generation not in RUNTIMES:
        raise ConfigError(
            f"target.accelerator_type={accelerator_type!r}: the software version of {generation!r} is not known here, "
            f"only those of {sorted(RUNTIMES)} (v5e is called v5litepod); set target.runtime."
        )
    where = [f"--{key}={value}" for key, value in (("project", project), ("zone", zone)) if value is not None]
    return {
        "accelerator_type": accelerator_type,
        "bucket": bucket.removeprefix("gs://").rstrip("/"),
        "project": project,
        "where": where,
        "runtime": runtime or RUNTIMES[generation],
        "flags": list(flags),
    }
