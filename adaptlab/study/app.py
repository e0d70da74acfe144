"""A study as a command: Hydra in front, a locked folder behind."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from adaptlab import config, hosts, preempt, runtime, source
from adaptlab.study import folder as folders

__all__ = ["app", "base_app", "fewest_runs"]

log = logging.getLogger(__name__)


def fewest_runs(study: Any) -> int:
    """Return how many runs the smallest program of a study has: over so many devices it can spread them.

    Args:
      study: has `members()` and `replication`; runs that are to run alone are spread over none.
    """
    if study.replication.get("how") == "alone":
        return 1
    return min(Counter(member.program for member in study.members()).values(), default=1)


def app(
    name: str, schema: Callable[..., Any], *, runs: Callable[[Any], int] | None = None
) -> Callable[[Callable[[Any, Path], Any]], Callable[[], Any]]:
    """Return a decorator that makes `f(study, folder)` the command of a study.

    The config `conf/<name>.yaml` is checked and completed before anything loads. The folder is a new one,
    `runs/<name>/<time>`, or the one that a killed process left of this very config (unless `resume=false`);
    it is locked while the study runs and holds `config.yaml`.

    Args:
      name: the primary config.
      schema: the dataclass that `f` gets: its fields are the config's top-level keys. For `hydra/launcher=vmap` it
        has `members()`, see `adaptlab.study.sweep`.
      runs: `study -> how many runs its programs have`, of a study that spreads them over devices: for it a CPU is split
        into as many as it has cores, see `fewest_runs`. None leaves a CPU one device.

    What `f` returns is the job's value to a sweeper that optimises, such as Optuna's: smaller is better.

    The same command, started once for each process of a job, makes them one study (`adaptlab.hosts`). Told to leave, it
    saves and returns `adaptlab.preempt.EXIT_CODE`; given again, it goes on from there.
    """
    folders.register_resolver(name, schema)

    def decorate(f: Callable[[Any, Path], Any]) -> Callable[[], Any]:
        @contextmanager
        def together(jobs: Any, folder: Path, options: Any, finish_early: Any) -> Iterator[Any]:
            from adaptlab.study import sweep  # heavy: not for --help

            runtime.configure()
            with ExitStack() as stack:
                stack.enter_context(preempt.noticing())
                try:
                    work = sweep.together(schema, [sweep.Job(*job) for job in jobs], folder, options, finish_early)
                    failed = stack.enter_context(work)
                except preempt.Preempted:
                    preempt.leave()
                yield failed

        @config.main(name, schema, together)
        def task(node: dict[str, Any], folder: Path) -> Any:
            from adaptlab import report  # heavy: not for --help
            from adaptlab.study.devices import cpu_devices
            from adaptlab.study.lab import shares_labs
            from adaptlab.study.members import check_runs
            from adaptlab.study.spread import by_processes

            runtime.configure()
            study = schema(**node)
            check_runs(study)
            folders.join_job(node)
            with ExitStack() as stack:
                lock = folders.locked(folder)
                folder = stack.enter_context(hosts.mirrored(folder, lambda: stack.enter_context(lock)))
                if (done := folders.outcome(folder, node)) is not None:
                    log.info("%s has finished before", folder)
                    return done["value"]
                alone = hosts.count() == 1 and not shares_labs()
                if runs is not None and alone:  # before anything asks JAX for its devices
                    parts = cpu_devices(runs(study))
                    runtime.split_cpu(parts)
                    if parts > 1 and by_processes(config.instantiate(study.replication), node["mesh"]):
                        runtime.expect_crew()
                surroundings = report.surroundings() | {"mesh": node.get("mesh")}
                for change in folders.open_folder(folder, node, surroundings):
                    log.warning("Resumed, but what the numbers depend on has changed: %s", change)
                (folder / "config.yaml").write_text(config.to_yaml(node))
                stack.enter_context(preempt.noticing())
                try:
                    value = f(study, folder)
                except preempt.Preempted as told:
                    log.warning("%s; saved in %s: the same command goes on from there", told, hosts.shared(folder))
                    preempt.leave()
                folders.close_folder(folder, value)
                hosts.barrier()  # a process that ends early takes the others with it
                return value

        return task

    return decorate


def base_app(name: str, schema: Callable[..., Any]) -> Callable[[Callable[[Any, Path], Any]], Callable[[], Any]]:
    """Return `app(name, schema)` for a study whose folder is a base, found by any other study.

    `${base_folder:<base>}` in its config is the key `out`, or `bases/<base>` in the cache. So the same command
    continues what was interrupted, wherever it is given.
    """

    def resolve(node: Mapping[str, Any], base: str) -> str:
        return str(Path(node["out"]).expanduser().absolute() if node["out"] else source.cache_dir() / "bases" / base)

    config.register_resolver("base_folder", resolve)
    return app(name, schema)
