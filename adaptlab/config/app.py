"""The one door to Hydra: no other module sees a DictConfig."""

import logging
import os
import re
import sys
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

from adaptlab.config.build import config_hash
from adaptlab.config.check import ConfigError, Node, join, nearest, validate

__all__ = ["compose", "conf_dir", "main", "register_resolver", "to_yaml"]

log = logging.getLogger(__name__)


def conf_dir() -> Path:
    """The folder of the yaml files: beside the package in a checkout, inside it in an installed wheel."""
    inside = Path(__file__).parents[1] / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def to_yaml(node: Any) -> str:
    """Return a config as yaml."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(node))


def compose(name: str, overrides: Iterable[str] = ()) -> Node:
    """Return the config `conf/<name>.yaml` with Hydra overrides, as plain containers."""
    return _plain(_composed(name, overrides))


def _composed(name: str, overrides: Iterable[str] = (), *, hydra: bool = False) -> Any:
    from hydra import compose as hydra_compose

    overrides = list(overrides)
    _check_groups(overrides)
    with _initialised():
        return hydra_compose(name, overrides, return_hydra_config=hydra)


def _initialised() -> AbstractContextManager[Any]:
    """Hydra over `conf/`, for as long as it is entered."""
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra

    GlobalHydra.instance().clear()
    return initialize_config_dir(str(conf_dir()), version_base="1.3")


def _check_groups(overrides: Iterable[str]) -> None:
    """Raise for a config group that is set to null, of which Hydra itself makes a traceback."""
    for override in overrides:
        key, equals, value = override.partition("=")
        group, at, package = key.lstrip("+").partition("@")
        if equals and "null" in value.lower().split(",") and (conf_dir() / group).is_dir() and not key.startswith("-"):
            choices = sorted(path.stem for path in (conf_dir() / group).glob("*.yaml"))
            raise ConfigError(
                f"{override}: {group!r} is a group of configs, which cannot be null. Choose from {choices}, or leave "
                f"it out with '~{group}{at}{package}' if the study does without."
            )


def _plain(config: Any) -> Node:
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    try:
        return typing.cast(Node, OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
    except MissingMandatoryValue as error:
        raise ConfigError(f"{error.full_key} has no value, and there is no default: give {error.full_key}=…") from error
    except OmegaConfBaseException as error:
        raise ConfigError(str(error).splitlines()[0]) from error


def register_resolver(name: str, resolve: Callable[..., Any]) -> None:
    """Make `${name:argument}` known to configs, as `resolve(the whole job's config, argument)`, once per config."""
    from omegaconf import OmegaConf

    resolved: dict[str, Any] = {}

    def resolver(*arguments: Any, _root_: Any) -> Any:
        job = OmegaConf.masked_copy(_root_, [key for key in _root_ if key != "hydra"])
        node = typing.cast(Node, OmegaConf.to_container(job, resolve=True))
        key = config_hash([node, arguments])
        if key not in resolved:
            try:
                resolved[key] = resolve(node, *arguments)
            except ValueError as error:
                _stop(error)
        return resolved[key]

    OmegaConf.register_new_resolver(name, resolver, replace=True)


def _stop(error: Exception) -> typing.NoReturn:
    """Leave with what a user can mend in one line; the traceback is one variable away."""
    if os.environ.get("HYDRA_FULL_ERROR"):
        raise error
    log.debug("", exc_info=error)
    sys.exit(f"{type(error).__name__}: {error}\n(HYDRA_FULL_ERROR=1 shows the traceback.)")


def main(
    name: str, schema: Callable[..., Any], together: Callable[..., AbstractContextManager[Any]] | None = None
) -> Callable[[Callable[[Any, Path], Any]], Callable[[], Any]]:
    """Return a decorator that makes `f(config, run_dir)` a Hydra app over `conf/<name>.yaml`.

    The config is checked against the schema and completed before `f` sees it, as plain containers.

    Args:
      name: the primary config.
      schema: a dataclass (or any callable): its fields are the config's top-level keys.
      together: `([(config, run_dir, label)], sweep_dir, options, finish_early) -> context manager`, which does the
        common work of the jobs of a multirun; `hydra/launcher=vmap` enters it before it runs them. It may call
        `finish_early(run_dir)` for a job whose part of the work is done, which then is run at once.
    """

    def checked(config: Any) -> Node:
        return validate(_plain(config), schema=schema)

    def decorate(f: Callable[[Any, Path], Any]) -> Callable[[], Any]:
        def app() -> Any:
            import hydra

            composed = False

            def job(config: Any) -> Any:
                from hydra.core.hydra_config import HydraConfig

                nonlocal composed
                composed = True
                try:
                    return f(checked(config), Path(HydraConfig.get().runtime.output_dir))
                except (ValueError, OSError) as error:
                    _stop(error)

            if together is not None:
                job.together = _jobs_together(together, checked)
            task = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)(job)

            try:
                _check_groups(sys.argv[1:])
            except ConfigError as error:
                _stop(error)
            try:
                return task()
            except SystemExit as stop:
                # Hydra says which override it rejects, but not which key was probably meant.
                rejected = not composed and stop.code == 1
                for hint in _override_hints(name, sys.argv[1:]) if rejected else []:
                    print(hint, file=sys.stderr)
                raise

        return app

    return decorate


def _jobs_together(
    together: Callable[..., AbstractContextManager[Any]], checked: Callable[[Any], Node]
) -> Callable[..., Any]:
    """Return `together` for a launcher: it takes Hydra's configs, and leaves with what a user can mend."""

    @contextmanager
    def run(
        jobs: Iterable[tuple[Any, Path, str]], sweep_dir: Path, options: Node, finish_early: Callable[[Path], None]
    ) -> Iterator[Any]:
        with ExitStack() as stack:
            nodes = []
            for number, (config, folder, label) in enumerate(jobs):
                try:
                    nodes.append((checked(config), folder, label))
                except ConfigError as error:
                    _stop(ConfigError(f"Job {number} ({label}): {error}"))
            try:
                outcome = stack.enter_context(together(nodes, sweep_dir, options, finish_early))
            except (ValueError, OSError) as error:
                _stop(error)
            yield outcome

    return run


def _override_hints(name: str, argv: list[str]) -> list[str]:
    from omegaconf import OmegaConf

    pairs = [(a.lstrip("+~").partition("=")[0], a) for a in argv if "=" in a and not a.startswith("-")]
    groups = [a for key, a in pairs if (conf_dir() / key.split("@")[0]).is_dir()]
    if strangers := [hint for group in groups for hint in _choice_hints(group)]:
        return strangers
    try:
        keys = _dotted(OmegaConf.to_container(_composed(name, groups, hydra=True), resolve=False))
    except Exception:  # then the config itself is wrong, and Hydra has said so
        return []
    unknown = [key for key, a in pairs if a not in groups and key not in keys and "/" not in key]
    alike = {of_hydra: [k for k in keys if k.startswith("hydra") == of_hydra] for of_hydra in (True, False)}
    return [f"{key!r} is not a key of {name!r}.{nearest(key, alike[key.startswith('hydra')])}" for key in unknown]


def _choice_hints(override: str) -> list[str]:
    """Return what was probably meant where an override of a group names no config of it."""
    from hydra.core.global_hydra import GlobalHydra

    key, _, values = override.lstrip("+").partition("=")
    group = key.split("@")[0]
    with _initialised():
        choices = GlobalHydra.instance().config_loader().get_group_options(group)
    unknown = [v for v in values.split(",") if re.fullmatch(r"[\w.-]+", v) and v not in choices]
    return [f"{v!r} is no config of the group {group!r}.{hint}" for v in unknown if (hint := nearest(v, choices))]


def _dotted(node: Any, path: str = "") -> list[str]:
    if not isinstance(node, Mapping):
        return [path]
    below = [key for k, value in node.items() for key in _dotted(value, join(path, str(k)))]
    return [path, *below] if path else below
