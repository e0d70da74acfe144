"""Run a command on a TPU slice, a Kubernetes or Slurm cluster, or a cloud: render what would run, and submit it.

    python -m scripts.launch target=tpu_vm target.bucket=gs://lab-runs name=forgetting-16 \\
        command='experiments.forgetting mesh.data=16'
    python -m scripts.launch target=slurm target.nodes=2 out=/shared/runs name=full command='experiments.forgetting' \\
        plan=plan.json dry_run=false

Targets are the files of conf/launch; docs/launching.md says what each does. Without `dry_run=false` it prints the files
and the command that would submit them, and does nothing. Every host runs the same command, with one run directory,
`out/name`, so that a run which was pre-empted goes on where it saved.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adaptlab as al


@dataclass
class Launch:
    """The keys of conf/launch.yaml.

    Attributes:
      target: where to run, one of conf/launch.
      command: a module and its arguments.
      name: of the job.
      out: a folder that every host sees.
      environment: variables every host has, each as NAME=value.
      secrets: names of variables every host has too, whose values are not shown.
      restarts: how often the job is run again after a pre-emption or a lost host.
      plan: `plan.json` of scripts.plan; a job that does not fit is not submitted.
      dry_run: only show what would run.
    """

    target: dict[str, Any]
    command: str
    name: str
    out: str
    environment: list[str]
    secrets: list[str]
    restarts: int
    plan: str | None
    dry_run: bool


def overrides(arguments: Sequence[str]) -> list[str]:
    """Return a command line as Hydra reads it: `target=` chooses from conf/launch, and the command is one text."""
    renamed = [f"launch@{a}" if a.startswith("target=") else a for a in arguments]
    return al.config.quoted(renamed, ["command", "environment", "target.flags"])


def render(launch: Launch) -> tuple[Any, Any]:
    """Return the target's files and submission, and the job, or refuse what cannot run.

    Raises:
      ConfigError: a job that cannot be meant, whose command its own config rejects, or that does not fit.
    """
    job = al.launch.job(
        launch.command,
        launch.name,
        out=launch.out,
        environment=launch.environment,
        secrets=launch.secrets,
        restarts=launch.restarts,
    )
    _check_command(job.argv())
    if launch.plan is not None:
        al.launch.refuse_unless_it_fits(launch.plan)
    target = al.config.instantiate(launch.target)
    missing = [name for name in job.secrets if target.secrets_from_here and name not in os.environ]
    if missing and not launch.dry_run:
        raise al.config.ConfigError(f"secrets={missing} are not set here, and this target takes them from here.")
    return target.render(job), job


def _check_command(command: Sequence[str]) -> None:
    """Refuse now what the command would refuse on every host. A sweep's values are not checked."""
    module, *arguments = command
    config = module.rpartition(".")[2]
    if any(a.startswith("-") for a in arguments) or not (al.config.conf_dir() / f"{config}.yaml").exists():
        return
    try:
        al.config.compose(config, arguments)
    except Exception as error:  # Hydra's own, which only config knows
        raise al.config.ConfigError(f"command: {module} rejects its arguments: {error}") from error


@al.config.main("launch", Launch)
def main(node: dict[str, Any], folder: Path) -> None:
    """Print the files and the command that submits them, or submit them."""
    launch = Launch(**node)
    rendered, job = render(launch)
    submit = shlex.join(rendered.submit)
    if launch.dry_run:
        for name, text in rendered.files.items():
            print(f"# --- {job.folder}/{name}\n{text}")
        print(f"# --- submitted by\n{submit}\n\nNothing was submitted; dry_run=false submits it.")
        return
    home = Path(job.folder)
    home.mkdir(parents=True, exist_ok=True)
    for name, text in rendered.files.items():
        (home / name).write_text(text)
    print(submit, flush=True)
    sys.exit(subprocess.run(rendered.submit, check=False).returncode)


if __name__ == "__main__":
    sys.argv[1:] = overrides(sys.argv[1:])
    main()
