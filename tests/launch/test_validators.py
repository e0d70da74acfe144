"""What is stored is accepted by the tools that would read it, where they are installed.

PATH=$PATH:VENV/bin python -m pytest -m slow tests/launch     with VENV holding kubernetes-validate, xpk, skypilot
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.launch.targets import GOLDEN


def needs(tool: str) -> Path:
    """The tool's path, or skip."""
    path = shutil.which(tool)
    if path is None:
        pytest.skip(f"{tool} is not installed")
    return Path(path)


@pytest.mark.slow
def test_kubernetes_knows_every_field_of_the_jobs_in_a_jobset(tmp_path: Path):
    validate = needs("kubernetes-validate")
    manifest = yaml.safe_load((GOLDEN / "jobset" / "jobset.yaml").read_text())
    for spec in manifest["spec"]["replicatedJobs"]:
        job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "job"}, **spec["template"]}
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
        subprocess.run([validate, "--strict", "-k", "1.33", tmp_path / "job.yaml"], check=True, timeout=60)


@pytest.mark.slow
def test_xpk_makes_a_manifest_that_starts_again_after_a_preemption(tmp_path: Path):
    needs("xpk")
    for file in (GOLDEN / "xpk").iterdir():
        shutil.copy(file, tmp_path)
    manifest = tmp_path / "manifest.yaml"
    dry = f"--dry-run --skip-validation --output-manifest-file={manifest}"
    script = (tmp_path / "launch.sh").read_text().replace("workload create", f"workload create {dry}")
    (tmp_path / "launch.sh").write_text(script)
    env = os.environ | {"WANDB_API_KEY": "x"}
    subprocess.run(["bash", tmp_path / "launch.sh"], env=env, check=True, capture_output=True, timeout=120)
    made = yaml.safe_load(manifest.read_text())["spec"]
    (job,) = made["replicatedJobs"]
    (rule,) = job["template"]["spec"]["podFailurePolicy"]["rules"]
    assert (rule["action"], rule["onExitCodes"]["operator"]) == ("FailJob", "NotIn")
    assert 75 in rule["onExitCodes"]["values"]
    assert made["failurePolicy"]["maxRestarts"] == 3


@pytest.mark.slow
@pytest.mark.parametrize("target", ["skypilot", "skypilot_gpus"])
def test_skypilot_reads_a_task(target: str, tmp_path: Path):
    python = needs("sky").with_name("python")
    reads = "import sys, sky; task = sky.Task.from_yaml(sys.argv[1]); print(task.name, task.num_nodes)"
    env = os.environ | {"HOME": str(tmp_path)}
    path = GOLDEN / target / "task.yaml"
    done = subprocess.run([python, "-c", reads, path], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-2:] == ["demo", "2" if target == "skypilot_gpus" else "1"]
