"""What is launched, whatever the machine: one command, its run directory, its environment."""

import importlib.util
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from adaptlab.config import ConfigError
from adaptlab.preempt import EXIT_CODE as EXIT_PREEMPTED

__all__ = ["EXIT_PREEMPTED", "Job", "Rendered", "Target", "job"]

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?")
_PATH = re.compile(r"(/[\w.-]+)+")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_FOLDERS = ("hydra.run.dir=", "hydra.sweep.dir=")


class Job(NamedTuple):
    """One command for every host.

    Attributes:
      name: of the job, and of all that is made for it.
      command: a module and its arguments, the run directory among them.
      out: a folder that every host sees at this path, and that outlives the machines.
      environment: variables every host has.
      secrets: names of variables that every host has too, and whose values are never written down.
      restarts: how often the job is run again after a pre-emption or a lost host.
      hosts: whether the command is a study that does not say itself how its processes find each other.
    """

    name: str
    command: tuple[str, ...]
    out: str
    environment: Mapping[str, str]
    secrets: tuple[str, ...]
    restarts: int
    hosts: bool

    @property
    def folder(self) -> str:
        """Where its files are written, in the clone."""
        return f"runs/launch/{self.name}"

    def argv(self, *prefix: str) -> list[str]:
        """Return the command after a prefix, as words; JAX is to find the processes of the job by itself."""
        return [*prefix, *self.command, *(["hosts=auto"] if self.hosts else [])]

    def run(self, *prefix: str) -> str:
        """Return `argv`, quoted for a shell."""
        return shlex.join(self.argv(*prefix))


class Rendered(NamedTuple):
    """What a target makes of a job.

    Attributes:
      files: `{name: text}`, written into the job's `folder`.
      submit: the command that submits them, run in the clone.
    """

    files: dict[str, str]
    submit: tuple[str, ...]


class Target(NamedTuple):
    """Somewhere to run jobs.

    Attributes:
      render: `job -> Rendered`, which touches nothing.
      secrets_from_here: whether secrets are read from the environment that submits, not from a store of the target.
    """

    render: Callable[[Job], Rendered]
    secrets_from_here: bool


def job(
    command: str,
    name: str,
    *,
    out: str,
    environment: Sequence[str] = (),
    secrets: Sequence[str] = (),
    restarts: int = 20,
) -> Job:
    """Return a job whose run directory is `out/name`, so that whoever runs it again goes on with it.

    Args:
      command: a module of experiments or scripts and its arguments, as one would type them after `python -m`.
      name: lower-case letters, digits and dashes, at most 40: it names machines and pods too.
      out: an absolute path.
      environment: variables, each as `NAME=value`; a cache of compiled programs under `out` is added if it has none.
      secrets: names of variables.
      restarts: how often the job is run again.

    Raises:
      ConfigError: a name, a module, a path or a variable that cannot be meant.
    """
    words = shlex.split(command)
    if words[:1] and words[0].startswith("python"):
        words = words[1:]
    words = words[1:] if words[:1] == ["-m"] else words
    if not _NAME.fullmatch(name):
        raise ConfigError(
            f"name={name!r} must be lower-case letters, digits and dashes, begin with a letter, end with none of the "
            f"dashes and have at most 40 signs: machines and pods are called so."
        )
    if not words or words[0].split(".")[0] not in ("experiments", "scripts") or not _exists(words[0]):
        raise ConfigError(
            f"command={command!r} must begin with a module of experiments or scripts, as after python -m."
        )
    if not _PATH.fullmatch(out):
        raise ConfigError(f"out={out!r} must be an absolute path of plain signs that every host sees: /mnt/runs.")
    given = {name: value for name, _, value in (one.partition("=") for one in environment)}
    if wrong := [one for one in environment if "=" not in one] + [
        v for v in [*given, *secrets] if not _VARIABLE.fullmatch(v)
    ]:
        raise ConfigError(f"environment is a list of NAME=value and secrets one of names, and {wrong} are no such.")
    variables = {"JAX_COMPILATION_CACHE_DIR": f"{out}/compiled"} | given
    if both := [v for v in secrets if v in variables]:
        raise ConfigError(f"{both} are both in environment, where values are printed, and in secrets: leave one out.")
    if restarts < 0:
        raise ConfigError(f"restarts={restarts} must be 0 or more.")
    hosts = words[0].startswith("experiments.") and not any(w.startswith(("hosts=", "hosts.")) for w in words)
    folder = _with_folder(words, f"{out}/{name}")
    return Job(name, tuple(folder), out, variables, tuple(secrets), restarts, hosts)


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _with_folder(words: list[str], folder: str) -> list[str]:
    """The command with its run directory, unless it says one; only studies have any."""
    if not words[0].startswith("experiments.") or any(word.startswith(_FOLDERS) for word in words):
        return words
    multirun = any(word in ("-m", "--multirun") for word in words[1:])
    return [*words, f"hydra.{'sweep' if multirun else 'run'}.dir={folder}"]
