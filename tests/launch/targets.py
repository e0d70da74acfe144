"""One job on every target; `python -m tests.launch.targets` writes what they make of it to tests/golden/launch."""

from pathlib import Path
from typing import Any

from adaptlab import launch

GOLDEN = Path(__file__).parents[1] / "golden" / "launch"
IMAGE = "europe-docker.pkg.dev/lab/images/adaptlab:1"
TARGETS: dict[str, Any] = {
    "tpu_vm": launch.tpu_vm("v5litepod-16", "gs://lab-runs", project="lab", zone="us-east5-b", spot=True),
    "queued_resource": launch.queued_resource(
        "v5p-128", "lab-runs", project="lab", zone="us-east5-a", slices=2, reserved=True, valid_for="12h"
    ),
    "jobset": launch.jobset(
        IMAGE, "tpu-v6e-slice", "4x4", "lab-runs", service_account="runner", queue="tpus", slices=2
    ),
    "xpk": launch.xpk(IMAGE, "lab-cluster", "v5litepod-16", "runs", project="lab", zone="us-east5-b"),
    "slurm": launch.slurm(nodes=2, flags=["--partition=gpu"], setup=["module load cuda"]),
    "skypilot": launch.skypilot("tpu-v5litepod-16", "gs://lab-runs", infra="gcp/us-central1"),
    "skypilot_gpus": launch.skypilot("H100:8", "s3://lab-runs", nodes=2, extra="cuda", spot=False),
}


def job(command: str = "experiments.forgetting mesh.data=16 'seeds=[0,1]'", name: str = "demo", **given: Any) -> Any:
    """A job; by default the one of the stored files."""
    given = {"out": "/mnt/runs", "secrets": ["WANDB_API_KEY"], "restarts": 3} | given
    return launch.job(command, name, **given)


def texts(target: str, **given: Any) -> dict[str, str]:
    """What is rendered: the files, and the submission as one more."""
    rendered = TARGETS[target].render(job(**given))
    return rendered.files | {"submit": " ".join(rendered.submit) + "\n"}


if __name__ == "__main__":
    for name in TARGETS:
        (GOLDEN / name).mkdir(parents=True, exist_ok=True)
        for file, text in texts(name).items():
            (GOLDEN / name / file).write_text(text)
