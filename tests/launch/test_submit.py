"""The scripts that submit, run for real against programs that only note how they were called."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from adaptlab import config, launch
from scripts import launch as command
from tests.launch.targets import TARGETS, job

CLONE = Path(__file__).parents[2]
# Notes its arguments, one call a line, and answers as the script `answers` says.
NOTING = """#!/bin/bash
printf '%s\\x1f' "$(basename "$0")" "$@" >>"$HOME/calls"; printf '\\x1e' >>"$HOME/calls"
[ "$(basename "$0")" = gcloud ] && case "$*" in *" cp - "*) cat >/dev/null ;; esac
source "$HOME/answers"
"""
TPU_VM = """
case "$*" in *" ssh "*) code=$(head -n 1 "$HOME/codes"); sed -i 1d "$HOME/codes"; exit "$code" ;; esac
"""
QUEUED = """
case "$*" in
*" create "*) touch "$HOME/there" ;;
*" delete "*) rm "$HOME/there" ;;
*" describe "*) if [ -e "$HOME/there" ]; then head -n 1 "$HOME/states"; else echo NOT_FOUND >&2; exit 1; fi ;;
*"storage cat "*)
    code=$(head -n 1 "$HOME/codes"); sed -i 1d "$HOME/codes" "$HOME/states"
    if [ "$code" = - ]; then exit 1; else printf '%b' "$code"; fi ;;
esac
"""


def play(
    target, folder: Path, answers: str, programs=("gcloud", "sleep"), **lines: list
) -> tuple[int, list[list[str]]]:
    """Run a target's script; return its exit code and the calls of the programs."""
    bin_ = folder / "bin"
    bin_.mkdir()
    for program in programs:
        (bin_ / program).write_text(NOTING)
        (bin_ / program).chmod(0o755)
    (folder / "answers").write_text(answers)
    for name, values in lines.items():
        (folder / name).write_text("".join(f"{value}\n" for value in values))
    given = job()
    for name, text in target.render(given).files.items():
        (folder / name).write_text(text)
    git = {"GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b", "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b"}
    job_of = {"WANDB_API_KEY": "x", "SLURM_JOB_ID": "7"}
    env = {"PATH": f"{bin_}:{os.environ['PATH']}", "HOME": str(folder), **job_of, **git}
    subprocess.run("git init -q && git commit -q --allow-empty -m one", shell=True, cwd=folder, env=env, check=True)
    script = next(name for name in ("launch.sh", "job.sbatch") if (folder / name).exists())
    done = subprocess.run(["bash", script], cwd=folder, env=env, capture_output=True, text=True, timeout=120)
    return done.returncode, [call.split("\x1f")[:-1] for call in (folder / "calls").read_text().split("\x1e")[:-1]]


def verbs(calls: list[list[str]]) -> list[str]:
    known = ("create", "ssh", "delete", "requeue")
    return [next(word for word in call if word in known) for call in calls if set(call) & set(known)]


@pytest.mark.parametrize(
    ("codes", "ends", "expected"),
    [
        ([0], 0, ["create", "ssh", "delete"]),
        ([75, 134, 0], 0, ["create", "ssh", "delete"] * 3),
        ([1, 0], 1, ["create", "ssh", "delete"]),
        ([255, 2], 2, ["create", "ssh", "delete"] * 2),
        ([75] * 9, 75, ["create", "ssh", "delete"] * 4),
    ],
    ids=["done", "pre-empted and lost", "a program error", "no connection", "too often"],
)
def test_a_tpu_vm_is_made_again_after_a_preemption_and_always_removed(tmp_path: Path, codes, ends, expected):
    code, calls = play(TARGETS["tpu_vm"], tmp_path, TPU_VM, codes=codes)
    assert (code, verbs(calls)) == (ends, expected)
    (host,) = {word for call in calls for word in call if word.startswith("--command=")}
    assert host.removeprefix("--command=") == (tmp_path / "host.sh").read_text().rstrip("\n")


def test_a_tpu_vm_that_is_to_be_kept_is_not_removed(tmp_path: Path):
    target = launch.tpu_vm("v4-8", "lab-runs", keep=True)
    assert verbs(play(target, tmp_path, TPU_VM, codes=[0])[1]) == ["create", "ssh"]


@pytest.mark.parametrize(
    ("codes", "states", "ends", "asked"),
    [
        (["-", "-", "0\\n0\\n", "0\\n0\\n"], ["WAITING_FOR_RESOURCES", "ACTIVE", "ACTIVE", "ACTIVE"], 0, 1),
        (["-", "-", "-", "0\\n", "0\\n"], ["ACTIVE", "SUSPENDING", "SUSPENDED", "ACTIVE", "ACTIVE"], 0, 3),
        (["75\\n0\\n", "75\\n75\\n", "0\\n", "0\\n"], ["ACTIVE"] * 4, 0, 2),
        (["1\\n", "1\\n0\\n"], ["ACTIVE"] * 2, 1, 1),
        (["-"], ["FAILED"], 1, 1),
    ],
    ids=["done", "taken away", "pre-empted", "a program error", "refused"],
)
def test_slices_from_the_queue_are_asked_for_again_when_they_were_taken_away(
    tmp_path: Path, codes, states, ends, asked
):
    code, calls = play(TARGETS["queued_resource"], tmp_path, QUEUED, codes=codes, states=states)
    assert (code, verbs(calls)) == (ends, ["create", "delete"] * asked)


@pytest.mark.parametrize(("code", "requeued"), [(0, False), (1, False), (75, True), (134, False)])
def test_slurm_queues_again_only_what_was_preempted(tmp_path: Path, code: int, requeued: bool):
    answers = f'[ "$(basename "$0")" = srun ] && exit {code}; true'
    (tmp_path / "scripts").mkdir()
    shutil.copy("/bin/true", tmp_path / "scripts" / "host")
    ended, calls = play(TARGETS["slurm"], tmp_path, answers, programs=("srun", "scontrol", "module"))
    assert ended == code
    assert (["scontrol", "requeue", "7"] in calls) == requeued


def launching(*words: str, **changes):
    """The launch that a command line describes."""
    node = config.compose("launch", command.overrides(["name=demo", "command=experiments.forgetting a=1", *words]))
    return command.Launch(**(config.validate(node, schema=command.Launch) | changes))


def test_nothing_is_submitted_unless_it_is_asked_for():
    assert launching("target=slurm").dry_run is True


def test_a_job_that_does_not_fit_is_refused_with_what_would_make_it_fit(tmp_path: Path):
    plan = tmp_path / "plan.json"
    found = {"fits": False, "hbm": 16 * 2**30, "memory_per_chip": {"parameters": 2**34, "optimiser": 2**33}}
    plan.write_text(
        json.dumps(found | {"suggestions": [{"overrides": ["mesh.fsdp=64"], "fits": True, "memory": 2**33}]})
    )
    asked = ["target=slurm", "command=experiments.forgetting", f"plan={plan}"]
    with pytest.raises(config.ConfigError, match=r"24\.0 GiB a chip, which has 16\.0.*\n  mesh\.fsdp=64 \(8\.0 GiB"):
        command.render(launching(*asked))
    plan.write_text(json.dumps({"fits": True}))
    assert command.render(launching(*asked))[1].name == "demo"
    plan.write_text("{}")
    with pytest.raises(config.ConfigError, match=r"scripts\.plan"):
        command.render(launching(*asked))


def test_a_secret_that_is_not_set_is_missed_before_anything_is_submitted(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    asked = ["target=slurm", "command=experiments.forgetting", "secrets=[WANDB_API_KEY]"]
    assert command.render(launching(*asked))
    with pytest.raises(config.ConfigError, match="WANDB_API_KEY"):
        command.render(launching(*asked, dry_run=False))


def test_the_command_writes_the_files_submits_them_and_leaves_with_the_code_of_the_submission(tmp_path: Path):
    (tmp_path / "kubectl").write_text('#!/bin/bash\necho "$@"; cat "${2#--filename=}"; exit 3\n')
    (tmp_path / "kubectl").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHONPATH": str(CLONE)}
    words = ["target=jobset", "target.image=i", "target.bucket=b", "name=demo", "command=experiments.forgetting"]
    run = [sys.executable, "-m", "scripts.launch", *words, "dry_run=false"]
    done = subprocess.run(run, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 3, done.stderr
    assert "apply --filename=runs/launch/demo/jobset.yaml" in done.stdout
    assert (tmp_path / "runs/launch/demo/jobset.yaml").read_text() in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("gcloud"), reason="gcloud is not installed")
@pytest.mark.parametrize("target", ["tpu_vm", "queued_resource"])
def test_gcloud_knows_its_commands_and_flags(target: str, tmp_path: Path):
    answers, lines = (TPU_VM, {"codes": [75, 0]}) if target == "tpu_vm" else (QUEUED, {})
    lines |= {"codes": ["75\\n", "75\\n", "0\\n", "0\\n"], "states": ["ACTIVE"] * 4} if answers is QUEUED else {}
    _, calls = play(TARGETS[target], tmp_path, answers, **lines)
    calls = [call for call in calls if call[0] == "gcloud"]
    calls = [["--command=true" if "\n" in word else word for word in call] for call in calls]  # host.sh is bash's
    calls.append(shlex.split("gcloud secrets versions access latest --secret=WANDB_API_KEY --project=lab"))
    (tmp_path / "commands.json").write_text(json.dumps([{"command_string": shlex.join(c)} for c in calls]))
    lint = ["gcloud", "meta", "lint-gcloud-commands", f"--commands-file={tmp_path / 'commands.json'}"]
    said = json.loads(subprocess.run(lint, capture_output=True, text=True, timeout=120, check=True).stdout)
    assert len(said) == len({shlex.join(call) for call in calls})
    assert [one["command_string"] for one in said if not one["success"]] == []
