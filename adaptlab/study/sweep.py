"""Sweeps: the jobs of a Hydra multirun, run together where they can be, resumed as a whole, reported as one.

A sweep's folder holds its jobs' folders, each a whole study of its own. The same command finds the folder again while
the sweep is unfinished, with any launcher; jobs that are done are not done again.
"""

import json
import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from adaptlab import config, report
from adaptlab.runtime import split_cpu
from adaptlab.study import crew as crews
from adaptlab.study import folder as folders
from adaptlab.study.devices import cpu_devices, over_all_devices
from adaptlab.study.halving import Halving
from adaptlab.study.lab import Lab, lab_settings, load_lab, sharing
from adaptlab.study.run import Task, announce, run_tasks
from adaptlab.study.settings import Replication
from adaptlab.study.spread import by_processes
from adaptlab.study.text import Text, load_text

__all__ = ["Job", "claim", "finish", "together"]

log = logging.getLogger(__name__)

_COMMAND, _FINISHED, _LABELS = "command.json", "report.html", "jobs.json"
_INCIDENTAL = ("wandb.", "resume=", "hydra", "hosts")


class Job(NamedTuple):
    """One job of a sweep.

    Attributes:
      node: its config, checked.
      folder: its folder.
      label: the overrides that make it.
    """

    node: dict[str, Any]
    folder: Path
    label: str


@contextmanager
def together(
    schema: Callable[..., Any],
    jobs: Sequence[Job],
    folder: Path,
    options: Mapping[str, Any],
    finish_early: Callable[[Path], None] = lambda folder: None,
) -> Iterator[dict[Path, Exception]]:
    """Train all members of all jobs, those of equal skeletons as one program; inside, the jobs can be finished.

    Args:
      schema: the study's dataclass.
      jobs: the jobs.
      folder: the sweep's.
      options: the keys of the launcher: those of `Replication`; `halving`, see `Halving`; and `cpu_devices`, into how
        many parts a CPU is split, each with a copy of the base and runs of its own (null: see `_cpu_devices`).
      finish_early: may be called with the folder of a job whose runs have ended while others' have not, once each.

    Yields:
      `{folder of a job: error}` of the jobs that have runs that failed.

    Raises:
      ConfigError: a job that says how its own runs are run together: here the launcher says it for all of them; or what
        the launcher says makes no sense.
    """
    for job in jobs:
        if said := [o for o in job.label.split() if o.startswith("replication.")]:
            raise config.ConfigError(
                f"{said[0]} has no effect in a sweep by hydra/launcher=vmap: its jobs share their programs. "
                f"Use hydra.launcher.{said[0].removeprefix('replication.')}."
            )
    halving, devices = _rule(options.get("halving")), options.get("cpu_devices")
    if devices is not None and devices < 1:
        raise config.ConfigError(f"hydra.launcher.cpu_devices={devices} must be at least 1, or null: one for a core.")
    rest = {key: value for key, value in options.items() if key not in ("halving", "cpu_devices")}
    target = {"_target_": "adaptlab.study.settings.Replication"}
    replication = config.instantiate(config.validate(target | rest, "hydra.launcher"))
    labs: dict[str, tuple[dict[str, Any], list[Task]]] = {}
    for job in jobs:
        study = schema(**job.node)
        settings = lab_settings(study)
        tasks = [
            Task(m, job.folder / "runs" / m.name, f"{job.folder.name}/{m.name}", folder.name, study.wandb)
            for m in study.members()
        ]
        labs.setdefault(config.config_hash(settings), (settings, []))[1].extend(tasks)
    log.info("%d jobs have %d runs on %d base%s", *_counts(jobs, labs))
    parts = devices or _cpu_devices([tasks for _, tasks in labs.values()], replication)
    split_cpu(parts)
    failed: dict[Path, Exception] = {}
    shared: list[tuple[dict[str, Any], Lab]] = []
    with ExitStack() as stack:
        many = parts > 1 and all(by_processes(replication, s["mesh"]) for s, _ in labs.values())
        crew = stack.enter_context(crews.crew(parts)) if many else None
        for settings, tasks in labs.values():
            working = crew if crew and any(not task.finished for task in tasks) else None
            lab = _opened(settings, working)
            trained = settings, lab._replace(params=None, figures=False)  # for what is left to do then
            try:
                if working:
                    announce(lab, tasks)
                    lab = lab if halving else trained[1]  # a halving may ask for the base's weights
                    with sharing([trained]):
                        meanwhile = _finishing(jobs, tasks, finish_early)
                        working.run(lab, tasks, folder, replication, halving, meanwhile)
                else:
                    run_tasks(lab, tasks, folder, replication, halving)
            except folders.StudyError as error:
                log.error("%s", error)
                missing = [t.home for t in tasks if not t.finished]
                failed |= {j.folder: error for j in jobs if any(home.is_relative_to(j.folder) for home in missing)}
            shared.append(trained)
    with sharing(shared):
        yield failed


def _opened(settings: Mapping[str, Any], crew: crews.Crew | None) -> Lab:
    """Open a lab, and let the crew open it too, with the text that is read here."""
    wide = dict(settings) | {"mesh": over_all_devices(settings["mesh"])}
    if crew is None:
        return load_lab(wide)
    crew.open(settings)
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(load_text, settings)

        def text() -> Text:
            crew.give(coming.result())
            return coming.result()

        return load_lab(wide, text)


def _finishing(jobs: Sequence[Job], tasks: Sequence[Task], finish: Callable[[Path], None]) -> Callable[[], bool]:
    """Return a function that finishes a job whose runs have all ended, and says whether there was one."""
    runs = {job.folder: [task for task in tasks if task.home.is_relative_to(job.folder)] for job in jobs}
    left = {folder: mine for folder, mine in runs.items() if mine}

    def one() -> bool:
        ended = next((folder for folder, mine in left.items() if all(task.finished for task in mine)), None)
        if ended is None:
            return False
        del left[ended]
        finish(ended)
        return True

    return one


def _rule(node: Any) -> Halving | None:
    if node is None:
        return None
    if isinstance(node, Mapping):
        node = config.instantiate(config.validate(node, "hydra.launcher.halving"))
    if isinstance(node, Halving):
        return node
    raise config.ConfigError(
        f"hydra.launcher.halving={node!r} is no rule; give one, such as "
        "'hydra.launcher.halving={_target_: adaptlab.study.successive_halving, eta: 3}', or null."
    )


def _cpu_devices(groups: Sequence[Sequence[Task]], replication: Replication) -> int:
    """Return over how many devices a CPU is split: as many as cores, if every program has that many runs.

    It is counted over all runs, finished or not, so that a sweep which is resumed keeps its devices, and its bits.
    """
    if replication.how == "alone":
        return 1
    runs = Counter((i, task.member.program) for i, tasks in enumerate(groups) for task in tasks)
    return cpu_devices(min(runs.values()))


def _counts(jobs: Sequence[Job], labs: Mapping[str, Any]) -> tuple[int, int, int, str]:
    return len(jobs), sum(len(tasks) for _, tasks in labs.values()), len(labs), "s" if len(labs) > 1 else ""


def claim(home: Path, wanted: Path | None, command: Mapping[str, Any], lock: ExitStack) -> Path:
    """Return a sweep's folder: the newest unfinished one of the same command, or a new one; it is locked.

    Args:
      home: where the study's sweeps are.
      wanted: the folder the user asks for, if any.
      command: what tells sweeps apart: `{"overrides": […], "config": …}`.
      lock: holds the lock.
    """
    overrides = [o for o in command["overrides"] if not o.startswith(_INCIDENTAL)]
    command = json.loads(json.dumps(dict(command) | {"overrides": overrides}))
    candidates = [wanted] if wanted else [p.parent for p in sorted(home.glob(f"*/{_COMMAND}"), reverse=True)]
    for folder in candidates:
        path = folder / _COMMAND
        there = json.loads(path.read_text()) if path.exists() else None
        if there not in (None, command):
            if wanted:
                sys.exit(
                    f"{folder} holds another sweep ({' '.join(there['overrides'])}). Choose another hydra.sweep.dir."
                )
            continue
        if not wanted and (folder / _FINISHED).exists():
            continue
        try:
            lock.enter_context(folders.locked(folder))
        except folders.StudyError as error:
            if wanted:
                sys.exit(str(error))
            continue
        if there:
            log.info("Resuming the sweep in %s", folder)
        folders.write_json(path, command)
        return folder
    folder = home / f"sweep_{datetime.now():%Y-%m-%d_%H-%M-%S-%f}"
    lock.enter_context(folders.locked(folder))
    folders.write_json(folder / _COMMAND, command)
    return folder


def finish(folder: Path) -> Path:
    """Write the report of a sweep over all its finished jobs, and return its path."""
    parts = sorted((p.parent for p in folder.glob("*/summary.json")), key=lambda p: (len(p.name), p.name))
    if not parts:
        raise folders.StudyError(f"{folder} has no finished job to report.")
    summaries = [json.loads((p / "summary.json").read_text()) for p in parts]
    runs, tables, seen = {}, [], {}
    labels = _labels(parts)
    for part in parts:
        mine = json.loads((part / "runs.json").read_text())
        for name, run in mine.items():
            if run["delta_digest"] in seen.setdefault((run["method"], run["lr"], run["seed"]), []):
                continue  # several jobs had this very run
            seen[run["method"], run["lr"], run["seed"]].append(run["delta_digest"])
            runs[f"{part.name}/{name}"] = run | {"method": " ".join(filter(None, (run["method"], labels[part])))}
        table = report.load_curves(part / "curves.parquet")
        tables.append(table.set_column(0, "run", pa.array([f"{part.name}/{n}" for n in table["run"].to_pylist()])))
    curves = pa.concat_tables(tables)
    curves = curves.filter(pa.array([run in runs for run in curves["run"].to_pylist()]))
    target, upstream = summaries[0]["target"], summaries[0]["upstream"]
    summary = report.summarise(curves, runs, target=target, upstream=upstream)
    passports = [json.loads((p / "passport.json").read_text()) for p in parts]
    passport = passports[0] | {
        "seeds": sorted({seed for one in passports for seed in one["seeds"]}),
        "deltas": {
            f"{p.name}/{k}": v for p, one in zip(parts, passports, strict=True) for k, v in one["deltas"].items()
        },
    }
    command = json.loads((folder / _COMMAND).read_text())
    text = "# " + " ".join(command["overrides"]) + "\n" + command["config"]
    path = report.write_report(folder, curves, runs, summary, passport, text)
    report.print_results(summary)
    return path


def _labels(parts: Sequence[Path]) -> dict[Path, str]:
    """What tells a job from the others besides learning rate and seed, which every run has anyway."""
    configs = {p: _flat(json.loads((p / "identity.json").read_text())) for p in parts}
    keys = dict.fromkeys(k for one in configs.values() for k in one)
    vary = [k for k in keys if len({json.dumps(one.get(k)) for one in configs.values()}) > 1]
    vary = [k for k in vary if k.split(".")[-1] not in ("lr", "seed", "seeds") and not k.startswith("hydra")]
    return {p: " ".join(f"{k}={configs[p].get(k)}" for k in vary) for p in parts}


def _flat(node: Any, path: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping):
        return {path: node}
    return {k: v for key, value in node.items() for k, v in _flat(value, f"{path}.{key}" if path else key).items()}
