"""Google Kubernetes Engine: a JobSet manifest of our own, or xpk, which writes one."""

import math
import shlex
import signal
from collections.abc import Sequence

from adaptlab.config import ConfigError
from adaptlab.launch.job import EXIT_PREEMPTED, Job, Rendered, Target
from adaptlab.launch.render import render

__all__ = ["jobset", "xpk"]

_LOST = (signal.SIGABRT, signal.SIGKILL, signal.SIGSEGV, signal.SIGTERM)
"""How the hosts end that are left behind when one is lost, and the lost one itself."""


def jobset(
    image: str,
    accelerator: str,
    topology: str,
    bucket: str,
    *,
    chips_per_host: int = 4,
    slices: int = 1,
    service_account: str = "default",
    secret: str = "adaptlab",
    namespace: str = "default",
    queue: str | None = None,
    spot: bool = False,
    grace_seconds: int = 300,
) -> Target:
    """A JobSet (jobset.x-k8s.io/v1alpha2): one Job a slice, one pod a host.

    A pod that was pre-empted, or ended by a signal, makes the JobSet start anew; one that fails otherwise ends it.

    Args:
      image: a container with a clone of this project as its working directory, see docs/launching.md.
      accelerator: the node label cloud.google.com/gke-tpu-accelerator, such as tpu-v5-lite-podslice.
      topology: of a slice, such as 4x4.
      bucket: a Cloud Storage bucket, mounted at the job's `out` by GKE's Cloud Storage FUSE driver.
      chips_per_host: TPU chips of one node.
      slices: several are joined over the data centre's network.
      service_account: of Kubernetes; it may read and write the bucket.
      secret: the Kubernetes secret that has the job's secrets, by name of variable.
      namespace: of Kubernetes.
      queue: a LocalQueue of Kueue's, or null.
      spot: run on spot nodes.
      grace_seconds: from the notice to the end, for saving.

    Raises:
      ConfigError: a topology whose chips are no whole number of hosts.
    """
    hosts = _hosts(topology, chips_per_host)
    if slices < 1:
        raise ConfigError(f"target.slices={slices} must be 1 or more.")
    values = {
        "image": image,
        "accelerator": accelerator,
        "topology": topology,
        "bucket": bucket.removeprefix("gs://").rstrip("/"),
        "chips_per_host": chips_per_host,
        "hosts": hosts,
        "slices": slices,
        "service_account": service_account,
        "secret": secret,
        "namespace": namespace,
        "queue": queue,
        "spot": spot,
        "grace_seconds": grace_seconds,
        "restart_codes": [EXIT_PREEMPTED, *(128 + one for one in _LOST)],
    }

    def rendered(job: Job) -> Rendered:
        files = {"jobset.yaml": render("jobset.yaml", job=job, **values)}
        return Rendered(files, ("kubectl", "apply", f"--filename={job.folder}/jobset.yaml"))

    return Target(rendered, secrets_from_here=False)


def _hosts(topology: str, chips_per_host: int) -> int:
    try:
        chips = math.prod(int(size) for size in topology.split("x"))
    except ValueError:
        chips = 0
    if chips < 1 or chips_per_host < 1 or chips % chips_per_host:
        raise ConfigError(
            f"target.topology={topology!r} with chips_per_host={chips_per_host} is no whole number of hosts; "
            f"a topology is written 4x4 or 2x2x4."
        )
    return chips // chips_per_host


def xpk(
    image: str,
    cluster: str,
    tpu_type: str,
    storage: str,
    *,
    project: str | None = None,
    zone: str | None = None,
    slices: int = 1,
    grace_seconds: int = 300,
    flags: Sequence[str] = (),
) -> Target:
    """A workload of xpk, on a cluster that xpk made.

    Args:
      image: as of `jobset`.
      cluster: its name.
      tpu_type: such as v5litepod-16.
      storage: a storage that was attached with xpk, mounted at the job's `out`.
      project, zone: null takes gcloud's own defaults.
      slices: several are joined over the data centre's network.
      grace_seconds: from the notice to the end, for saving.
      flags: more flags of `xpk workload create`.
    """

    def rendered(job: Job) -> Rendered:
        where = {"project": project, "zone": zone}
        given = {
            "workload": job.name,
            "cluster": cluster,
            **{key: value for key, value in where.items() if value is not None},
            "tpu-type": tpu_type,
            "num-slices": slices,
            "docker-image": image,
            "storage": storage,
            "command": job.run("python", "-m"),
            "env-file": "environment",
            "max-restarts": job.restarts,
            "restart-on-exit-codes": EXIT_PREEMPTED,  # xpk itself adds those of signals
            "termination-grace-period-seconds": grace_seconds,
        }
        words = [*(f"--{key}={value}" for key, value in given.items()), *flags]
        # A variable without a value is taken from the environment of whoever submits.
        variables = [*(f"{key}={value}" for key, value in job.environment.items()), *job.secrets]
        script = render("xpk.sh", job=job, words=[shlex.quote(word) for word in words])
        return Rendered(
            {"launch.sh": script, "environment": "\n".join([*variables, ""])}, ("bash", f"{job.folder}/launch.sh")
        )

    return Target(rendered, secrets_from_here=True)
