"""What is launched is what was stored, says nothing secret, and cannot be talked into anything else."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from adaptlab import config, launch
from scripts import launch as command
from tests.launch.targets import GOLDEN, IMAGE, TARGETS, job, texts

SCRIPTS = [path for path in sorted(GOLDEN.glob("*/*")) if path.suffix in (".sh", ".sbatch")]


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_renders_what_is_stored(target: str):
    # After a change that is meant: python -m tests.launch.targets
    assert texts(target) == {path.name: path.read_text() for path in (GOLDEN / target).iterdir()}


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_bash_can_read_a_script(path: Path):
    subprocess.run(["bash", "-n", path], check=True, timeout=60)


def test_every_target_runs_the_same_command_in_the_same_folder():
    words = "experiments.forgetting mesh.data=16 'seeds=[0,1]' hydra.run.dir=/mnt/runs/demo hosts=auto"
    for target in TARGETS.keys() - {"jobset", "xpk", "skypilot_gpus"}:
        assert words in "".join(texts(target).values()), target
    manifest = yaml.safe_load(texts("jobset")["jobset.yaml"])
    assert pod(manifest)["containers"][0]["command"] == job().argv("python", "-m")


def pod(manifest: dict) -> dict:
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_value_of_a_secret_is_nowhere(target: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WANDB_API_KEY", "hush-hush")
    rendered = "".join(texts(target).values())
    assert "WANDB_API_KEY" in rendered
    assert "hush-hush" not in rendered


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_runs_again_what_was_preempted_and_only_so_often(target: str):
    rendered = "".join(texts(target).values())
    assert str(launch.EXIT_PREEMPTED) in rendered
    assert target.startswith("skypilot") or "3" in rendered.replace("3.11", "")


HOSTILE = {
    "a substitution": "$(touch stolen)",
    "a quote": "'; touch stolen; '",
    "a double quote": '"; touch stolen; "',
    "a line": "one\ntouch stolen",
    "spaces and stars": "a  b * ~ $HOME",
}


@pytest.mark.parametrize("value", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_value_arrives_as_it_was_given_and_is_not_run(value: str, tmp_path: Path):
    import shlex

    given = job(shlex.join(["experiments.forgetting", f"name={value}"]), environment=[f"NOTE={value}"], secrets=[])
    script = TARGETS["slurm"].render(given).files["job.sbatch"]
    home = stub(tmp_path, {"module": "", "srun": '"$@"', "scontrol": ""})
    (tmp_path / "scripts").mkdir()
    (tmp_path / "scripts" / "host").write_text('#!/bin/bash\nprintf "%s\\0" "$@" "$NOTE" > got\n')
    (tmp_path / "scripts" / "host").chmod(0o755)
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=home, check=True, timeout=60)
    assert (tmp_path / "got").read_text().split("\0")[:-1] == [*given.argv("cuda"), value]
    assert not list(tmp_path.glob("**/stolen"))
    manifest = yaml.safe_load(TARGETS["jobset"].render(given).files["jobset.yaml"])
    assert pod(manifest)["containers"][0]["command"] == given.argv("python", "-m")
    assert pod(manifest)["containers"][0]["env"][1] == {"name": "NOTE", "value": value}
    sky = yaml.safe_load(TARGETS["skypilot"].render(given).files["task.yaml"])
    assert shlex.split(sky["run"]) == given.argv("scripts/host", "tpu")


def stub(folder: Path, programs: dict[str, str]) -> dict[str, str]:
    """An environment in which these programs do nothing but what their line of bash says."""
    (folder / "bin").mkdir()
    for name, line in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{line}\n")
        (folder / "bin" / name).chmod(0o755)
    return {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "HOME": str(folder)}


def test_a_jobset_has_a_pod_for_every_host_and_a_job_for_every_slice():
    manifest = yaml.safe_load(texts("jobset")["jobset.yaml"])
    (replicated,) = manifest["spec"]["replicatedJobs"]
    assert (replicated["replicas"], replicated["template"]["spec"]["parallelism"]) == (2, 4)
    assert pod(manifest)["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}


def test_a_program_error_ends_a_jobset_and_a_preemption_does_not():
    spec = yaml.safe_load(texts("jobset")["jobset.yaml"])["spec"]
    *_, on_codes = spec["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"]["rules"]
    assert (on_codes["action"], on_codes["onExitCodes"]["operator"]) == ("FailJob", "NotIn")
    assert {75, 134, 137, 143} <= set(on_codes["onExitCodes"]["values"])
    assert not {0, 1, 2} & set(on_codes["onExitCodes"]["values"])
    (rule,) = spec["failurePolicy"]["rules"]
    assert (rule["action"], rule["onJobFailureReasons"]) == ("FailJobSet", ["PodFailurePolicy"])
    assert spec["failurePolicy"]["maxRestarts"] == 3


WRONG = {
    "a name with capitals": (lambda: job(name="Demo"), "lower-case"),
    "a name that is too long": (lambda: job(name="a" * 41), "40"),
    "a module that is not there": (lambda: job("experiments.forgeting"), "experiments"),
    "another program": (lambda: job("rm -rf /"), "experiments or scripts"),
    "a relative folder": (lambda: job(out="runs"), "absolute"),
    "a variable that is none": (lambda: job(environment=["a b=1"]), "a b"),
    "a secret that is printed": (lambda: job(environment=["WANDB_API_KEY=x"]), "both"),
    "fewer than no restarts": (lambda: job(restarts=-1), "restarts"),
    "v5e by its short name": (lambda: launch.tpu_vm("v5e-16", "b"), "v5litepod"),
    "two sorts of capacity": (lambda: launch.queued_resource("v4-8", "b", spot=True, reserved=True), "capacity"),
    "no slices": (lambda: launch.queued_resource("v4-8", "b", slices=0), "slices"),
    "half a host": (lambda: launch.jobset(IMAGE, "tpu-v6e-slice", "2x3", "b"), "topology"),
    "a topology that is none": (lambda: launch.jobset(IMAGE, "tpu-v6e-slice", "16", "b", chips_per_host=3), "topology"),
    "GPUs without CUDA": (lambda: launch.slurm(extra="cpu"), "gpus_per_node"),
    "a bucket without a scheme": (lambda: launch.skypilot("H100:8", "runs", extra="cuda"), "gs://runs"),
    "two TPU slices of SkyPilot's": (lambda: launch.skypilot("tpu-v4-8", "gs://b", nodes=2), "nodes"),
}


@pytest.mark.parametrize(("make", "said"), WRONG.values(), ids=WRONG.keys())
def test_what_cannot_be_meant_is_refused_when_it_is_made(make, said: str):
    with pytest.raises(config.ConfigError, match=said):
        make()


def test_a_run_directory_that_is_given_stays_and_a_sweep_has_one_of_its_own():
    assert job("experiments.forgetting hydra.run.dir=/elsewhere").command[-1] == "hydra.run.dir=/elsewhere"
    assert job("experiments.forgetting -m seeds=[0],[1]").command[-1] == "hydra.sweep.dir=/mnt/runs/demo"
    assert job("python -m scripts.evaluate text=a.txt").argv() == ["scripts.evaluate", "text=a.txt"]
    assert "hosts=auto" not in job("experiments.forgetting hosts=single").argv()


@pytest.mark.skipif(not shutil.which("shellcheck"), reason="shellcheck is not installed")
def test_shellcheck_has_nothing_to_say():
    subprocess.run(["shellcheck", *SCRIPTS], check=True, timeout=60)


def test_the_command_is_checked_before_it_goes_anywhere():
    with pytest.raises(config.ConfigError, match=r"mesh\.dat"):
        command._check_command(job("experiments.forgetting mesh.dat=16").argv())
    command._check_command(job("experiments.forgetting mesh.data=16").argv())


@pytest.mark.parametrize(
    ("words", "code", "expected"),
    [
        (
            ["tpu", "experiments.forgetting", "a=b c"],
            0,
            ["locked requirements.lock", "extra tpu", "-m experiments.forgetting a=b c"],
        ),
        (["cpu", "json.tool"], 0, ["locked requirements.lock", "-m json.tool"]),
        (["cuda"], 0, ["locked requirements.lock", "extra cuda"]),
        (["rocm", "json.tool"], 64, []),
        ([], 64, []),
    ],
    ids=["with an extra", "without", "only installed", "no such extra", "nothing"],
)
def test_a_host_installs_what_it_needs_before_it_runs(tmp_path: Path, words, code: int, expected):
    (tmp_path / "scripts").mkdir()
    shutil.copy(Path(__file__).parents[2] / "scripts" / "host", tmp_path / "scripts")
    install = """CLONE=$PWD VENV=$PWD/venv
    find_python() { echo python3; }
    install_locked() { echo "locked $1" >>said; }
    install_extra() { echo "extra $1" >>said; }
    """
    (tmp_path / "scripts" / "install.sh").write_text(install)
    (tmp_path / "venv" / "bin").mkdir(parents=True)
    (tmp_path / "venv" / "bin" / "python").write_text('#!/bin/bash\necho "$*" >>said\n')
    (tmp_path / "venv" / "bin" / "python").chmod(0o755)
    done = subprocess.run(["scripts/host", *words], cwd=tmp_path, capture_output=True, timeout=60)
    said = tmp_path / "said"
    assert (done.returncode, said.read_text().splitlines() if said.exists() else []) == (code, expected)
