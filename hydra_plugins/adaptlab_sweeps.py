"""What Hydra looks for here: `hydra/launcher=vmap`, and the callback that lets any sweep of a study resume.

Thin: what a sweep does stands in `adaptlab.study.sweep`.
"""

import copyreg
import importlib
import logging
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus, configure_log, filter_overrides, run_job, setup_globals
from hydra.errors import HydraException
from hydra.experimental.callback import Callback
from hydra.plugins.launcher import Launcher
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from adaptlab.config.multirun import composing_once
from adaptlab.runtime import expect_crew

log = logging.getLogger(__name__)


@dataclass
class VmapLauncherConf:
    """The keys of `hydra.launcher` with `hydra/launcher=vmap`; see `adaptlab.study.sweep.together`."""

    _target_: str = "hydra_plugins.adaptlab_sweeps.VmapLauncher"
    _recursive_: bool = False  # the factories in it are called by adaptlab, which checks them first
    _convert_: str = "all"
    how: str = "auto"
    slots: int | None = None
    memory_gib: float | None = None
    cpu_devices: int | None = None
    halving: Any = None


ConfigStore.instance().store(group="hydra/launcher", name="vmap", node=VmapLauncherConf, provider="adaptlab")


class VmapLauncher(Launcher):
    """Runs the jobs of a multirun that differ only in numbers as one program.

    First all members of all jobs are trained, each into its own job's folder. A job is run, as by any launcher, when
    its members have been: it finds them finished and writes its results.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def setup(self, *, hydra_context: Any, task_function: Any, config: DictConfig) -> None:
        """Keep what Hydra hands over."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config
        self.composed = composing_once(hydra_context.config_loader)
        expect_crew()

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs; see the class."""
        setup_globals()
        together = getattr(self.task_function, "together", None)
        if together is None:
            raise HydraException(
                "hydra/launcher=vmap runs the studies of adaptlab; for other apps use another launcher."
            )
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        configs = [self._compose(list(o), initial_job_idx + i) for i, o in enumerate(job_overrides)]
        folders = [self._folder(config) for config in configs]
        for folder in folders:
            _wait_for(folder)
        labels = [" ".join(filter_overrides(o)) for o in job_overrides]
        with ExitStack() as stack:
            jobs = [(_task(c), folder, label) for c, folder, label in zip(configs, folders, labels, strict=True)]
            by_folder, done = dict(zip(folders, configs, strict=True)), {}

            def finish_early(folder: Path) -> None:
                with suppress(Exception, SystemExit):  # the same once more when all others have trained
                    done[folder] = self._run(by_folder[folder])

            failed = stack.enter_context(together(jobs, Path(self.config.hydra.sweep.dir), self.options, finish_early))
            return [
                _failure(config, failed[folder]) if folder in failed else done.get(folder) or self._run(config)
                for config, folder in zip(configs, folders, strict=True)
            ]

    def _compose(self, overrides: list[str], number: int) -> DictConfig:
        config = self.composed(self.config, overrides)
        with open_dict(config):
            config.hydra.job.id = config.hydra.job.num = number
        return config

    def _folder(self, config: DictConfig) -> Path:
        before = HydraConfig.instance().cfg
        HydraConfig.instance().set_config(config)
        try:
            return Path(config.hydra.sweep.dir) / str(config.hydra.sweep.subdir)
        finally:
            HydraConfig.instance().cfg = before

    def _run(self, config: DictConfig) -> JobReturn:
        done = run_job(
            hydra_context=self.hydra_context,
            task_function=self.task_function,
            config=config,
            job_dir_key="hydra.sweep.dir",
            job_subdir_key="hydra.sweep.subdir",
        )
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        return done


def _task(config: DictConfig, *without: str) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(key) for key in config if key not in ("hydra", *without)])


def _failure(config: DictConfig, error: Exception) -> JobReturn:
    return JobReturn(cfg=_task(config), status=JobStatus.FAILED, _return_value=error)


class SweepFolder(Callback):
    """Gives a multirun the folder of its own unfinished predecessor, and a report of all its jobs at the end."""

    def __init__(self, home: str) -> None:
        self.home, self.lock = home, ExitStack()

    def __reduce__(self) -> tuple[Any, ...]:
        """Launchers send their callbacks to the processes of the jobs; the lock stays with the process that has it."""
        return SweepFolder, (self.home,)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Choose the folder, and hold it until the process ends."""
        from adaptlab import hosts
        from adaptlab.study import sweep
        from adaptlab.study.folder import join_job

        _make_importable()
        _seed_the_sampler(config)
        given = [o for o in config.hydra.overrides.hydra if o.startswith("hydra.sweep.dir=")]
        command = {"overrides": list(config.hydra.overrides.task), "config": OmegaConf.to_yaml(_task(config, "hosts"))}
        wanted = Path(config.hydra.sweep.dir) if given else None
        try:
            join_job({"hosts": OmegaConf.to_container(config.hosts)} if "hosts" in config else {})
            folder = Path(hosts.agreed(lambda: str(sweep.claim(Path(self.home), wanted, command, self.lock))))
            folder = self.lock.enter_context(hosts.mirrored(folder))
        except (
            ValueError,
            OSError,
            hosts.HostError,
        ) as error:  # Hydra makes a warning of what callbacks raise, and goes on
            sys.exit(f"There is no folder for the sweep: {error}")
        with open_dict(config):
            config.hydra.sweep.dir = str(folder)
            # Every job's config is composed anew, from these.
            config.hydra.overrides.hydra = [
                o for o in config.hydra.overrides.hydra if not o.startswith("hydra.sweep.dir=")
            ] + [f"hydra.sweep.dir='{folder}'"]

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        """Wait for a process that outlived the sweep that started it, as on a cluster, and still runs this job."""
        if config.hydra.mode == RunMode.MULTIRUN:
            _make_importable()  # here too: a job that is queued again is sent once more, by itself
            _wait_for(Path(config.hydra.runtime.output_dir))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        """Write the report of the sweep."""
        from adaptlab.study import sweep

        try:
            print(f"Report of the sweep: {sweep.finish(Path(config.hydra.sweep.dir))}")
        except ValueError as error:
            sys.exit(f"The jobs are done, but not the report of the sweep: {error}")
        self.lock.close()


def _wait_for(folder: Path) -> None:
    from adaptlab.study.folder import StudyError, locked

    told = False
    while True:
        try:
            with locked(folder):
                return
        except StudyError as error:
            if not told:
                log.warning("%s Waiting for it.", error)
                told = True
            time.sleep(1.0)


def _seed_the_sampler(config: DictConfig) -> None:
    """A search is resumed by being repeated: it must propose the same trials again."""
    sampler = OmegaConf.select(config, "hydra.sweeper.sampler")
    if isinstance(sampler, DictConfig) and "seed" in sampler and sampler.seed is None:
        sampler.seed = 0
        log.info("hydra.sweeper.sampler.seed=0, so that the search can be resumed")


def _make_importable() -> None:
    """Let a launcher send the study to other processes by its name, so that they import it as it stands here.

    What runs as `__main__` is sent by value, and there its annotations, which are what a config is checked against,
    would refer to nothing.
    """
    main = sys.modules["__main__"]
    spec, path = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    name = spec.name if spec else Path(path).stem if path else None
    if name and sys.modules.setdefault(name, main) is main:
        for value in vars(main).values():
            if isinstance(value, type) and value.__module__ == "__main__":
                value.__module__ = name
    # Packages that load lazily may have a class of their own, which no pickler knows.
    for kind in {type(m) for n, m in sys.modules.items() if n.partition(".")[0] == "adaptlab"} - {ModuleType}:
        copyreg.pickle(kind, _by_name)  # pyright: ignore[reportArgumentType]


def _by_name(module: Any) -> tuple[Any, ...]:
    return importlib.import_module, (module.__name__,)
