"""Configs are call trees: a node with `_target_` names a factory, and the factory's signature is its schema.

This is the one door to Hydra: no other module sees a DictConfig. A config is checked whole (unknown keys, missing
keys, wrong types) before anything loads, and completed with the defaults of the signatures, so that what is recorded is
what ran.
"""

import dataclasses
import difflib
import functools
import hashlib
import importlib
import inspect
import json
import logging
import os
import sys
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

__all__ = [
    "ConfigError",
    "Given",
    "Traced",
    "compose",
    "config_hash",
    "fill",
    "instantiate",
    "main",
    "nearest",
    "register_resolver",
    "split",
    "to_yaml",
    "validate",
]

log = logging.getLogger(__name__)

TRACED = "a number that may differ between runs of one program"
GIVEN = "supplied by the program, not by the config"

Traced = Annotated[Any, TRACED]
"""Marks a factory's parameter as a number that may be a traced value: no `float(x)`, no Python branch on it."""

Given = Annotated[Any, GIVEN]
"""Marks a factory's parameter as one that the program passes to `instantiate`, such as the number of steps."""

Node = dict[str, Any]


class ConfigError(ValueError):
    """A config that says something its factories do not understand."""


def conf_dir() -> Path:
    """The folder of the yaml files: beside the package in a checkout, inside it in an installed wheel."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[1] / "conf"


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the choice most like `name`, or nothing."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


# Checking ----------------------------------------------------------------------------------------------------


def locate(target: str, where: str = "_target_") -> Callable[..., Any]:
    """Import what a `_target_` names.

    Raises:
      ConfigError: names the path, the target, what its module offers and the nearest name.
    """
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{where}: cannot import {module_name!r} for {target!r}: {error}") from error
    if not callable(factory := getattr(module, name, None)):
        public = [n for n in getattr(module, "__all__", dir(module)) if not n.startswith("_")]
        raise ConfigError(
            f"{where}: {module_name} has no factory {name!r}.{nearest(name, public)} It offers: {public}."
        )
    return factory


@functools.cache
def _parameters(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    # Annotations may be strings; the hints that cannot be resolved (array shapes) are not for configs anyway.
    try:
        hints = typing.get_type_hints(factory, include_extras=True)
    except Exception:
        hints = {}
    parameters = inspect.signature(factory).parameters
    return {n: p.replace(annotation=hints.get(n, Any)) for n, p in parameters.items()}


def _marked(parameter: inspect.Parameter, mark: str) -> bool:
    return mark in getattr(parameter.annotation, "__metadata__", ()) or any(
        mark in getattr(hint, "__metadata__", ()) for hint in typing.get_args(parameter.annotation)
    )


def _is_call(value: Any) -> bool:
    return isinstance(value, Mapping) and "_target_" in value


def validate(node: Any, path: str = "", schema: Callable[..., Any] | None = None) -> Any:
    """Check a config against the signatures it calls, and complete it with their defaults.

    Args:
      node: plain containers; a dict with `_target_` is a call.
      path: where the node stands, for errors.
      schema: what the keys of a dict without `_target_` mean, e.g. the dataclass of a study.

    Returns:
      The same config with every defaulted parameter written out.

    Raises:
      ConfigError: an unknown, missing or mistyped key; names the path, the value, the choices and the nearest name.
    """
    if isinstance(node, Mapping):
        factory = locate(node["_target_"], path) if "_target_" in node else schema
        if factory is not None:
            return _validate_call(dict(node), path, factory)
        return {key: validate(value, _join(path, key)) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [validate(value, f"{path}[{i}]") for i, value in enumerate(node)]
    return node


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else str(key)


def _validate_call(node: Node, path: str, factory: Callable[..., Any]) -> Node:
    parameters = _parameters(factory)
    named = {
        n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and not _marked(p, GIVEN)
    }
    title = node.get("_target_", getattr(factory, "__name__", "the study"))
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in node.keys() - named.keys() - {"_target_"}:
            raise ConfigError(
                f"{_join(path, key)}={node[key]!r}: {title} has no parameter {key!r}.{nearest(key, named)} "
                f"It takes: {sorted(named)}."
            )
    done = {"_target_": node["_target_"]} if "_target_" in node else {}
    for key, parameter in named.items():
        if key in node:
            done[key] = _validate_value(node[key], _join(path, key), parameter, title)
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"{_join(path, key)}: {title} needs {key!r} and the config does not give it.")
        elif isinstance(parameter.default, int | float | str | bool | None | list | tuple | dict):
            done[key] = validate(parameter.default, _join(path, key))
    return done | {k: validate(v, _join(path, k)) for k, v in node.items() if k not in done}


def _validate_value(value: Any, path: str, parameter: inspect.Parameter, title: str) -> Any:
    """Check one argument. A dataclass, or a dict of dataclasses by name, is the schema of what stands below it."""
    hint = parameter.annotation
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping) and not _is_call(value):
        return validate(value, path, typing.cast(Callable[..., Any], hint))
    if typing.get_origin(hint) is dict and isinstance(value, Mapping):
        below = typing.get_args(hint)[1]
        if dataclasses.is_dataclass(below):
            return {name: validate(part, _join(path, name), typing.cast(Any, below)) for name, part in value.items()}
    _check_type(value, parameter, path, title)
    return validate(value, path)


def _check_type(value: Any, parameter: inspect.Parameter, path: str, title: str) -> None:
    from beartype.door import is_bearable

    hint = float if _marked(parameter, TRACED) else parameter.annotation
    if hint is float and _marked(parameter, TRACED) and type(None) in typing.get_args(parameter.annotation):
        hint = float | None
    if _is_call(value):
        if hint not in (int, float, str, bool):
            return
    elif is_bearable(value, hint) or (type(value) is int and is_bearable(float(value), hint)):
        return
    expected = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")
    raise ConfigError(f"{path}={value!r}: {title} expects {expected}, not {type(value).__name__}.")


# Building ----------------------------------------------------------------------------------------------------


def instantiate(node: Any, **given: Any) -> Any:
    """Call the factories of a tree, innermost first.

    Args:
      node: plain containers; a dict with `_target_` is a call.
      **given: passed to the outermost factory only, for the parameters marked `Given` that it has.
    """
    if _is_call(node):
        factory = locate(node["_target_"])
        arguments = {k: instantiate(v) for k, v in node.items() if k != "_target_"}
        return factory(**arguments, **{k: v for k, v in given.items() if k in _parameters(factory)})
    if isinstance(node, Mapping):
        return {key: instantiate(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [instantiate(value) for value in node]
    return node


def split(node: Any, path: str = "") -> tuple[Any, dict[str, float]]:
    """Split a validated config in a static skeleton and the numbers that may differ between runs of one program.

    Returns:
      The config with `None` where a traced number stood, and `{dotted path: number}`. `fill` undoes it.
    """
    numbers: dict[str, float] = {}
    if isinstance(node, Mapping):
        parameters = _parameters(locate(node["_target_"])) if _is_call(node) else {}
        skeleton: Any = {}
        for key, value in node.items():
            here = _join(path, key)
            if isinstance(value, int | float) and key in parameters and _marked(parameters[key], TRACED):
                skeleton[key], numbers[here] = None, float(value)
            else:
                skeleton[key], below = split(value, here)
                numbers |= below
        return skeleton, numbers
    return node, numbers


def fill(skeleton: Any, numbers: Mapping[str, Any], path: str = "") -> Any:
    """Put numbers, traced or not, back where `split` found them."""
    if not isinstance(skeleton, Mapping):
        return skeleton
    return {
        key: numbers[_join(path, key)] if _join(path, key) in numbers else fill(value, numbers, _join(path, key))
        for key, value in skeleton.items()
    }


def config_hash(node: Any) -> str:
    """SHA-256 of a config's canonical JSON."""
    return hashlib.sha256(json.dumps(node, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def to_yaml(node: Any) -> str:
    """Return a config as yaml."""
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.create(node))


# Hydra -------------------------------------------------------------------------------------------------------


def compose(name: str, overrides: Iterable[str] = ()) -> Node:
    """Return the config `conf/<name>.yaml` with Hydra overrides, as plain containers."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return _plain(hydra_compose(name, list(overrides)))


def _plain(config: Any) -> Node:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        return typing.cast(Node, OmegaConf.to_container(config, resolve=True, throw_on_missing=True))
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
            except ConfigError as error:
                _stop(error)
        return resolved[key]

    OmegaConf.register_new_resolver(name, resolver, replace=True)


def _stop(error: Exception) -> typing.NoReturn:
    """Leave with what a user can mend in one line; the traceback is one variable away."""
    if os.environ.get("HYDRA_FULL_ERROR"):
        raise error
    log.debug("", exc_info=error)
    sys.exit(f"{type(error).__name__}: {error}\n(HYDRA_FULL_ERROR=1 shows the traceback.)")


def main(name: str, schema: Callable[..., Any]) -> Callable[[Callable[[Any, Path], Any]], Callable[[], Any]]:
    """Return a decorator that makes `f(config, run_dir)` a Hydra app over `conf/<name>.yaml`.

    The config is checked against the schema and completed before `f` sees it, as plain containers.

    Args:
      name: the primary config.
      schema: a dataclass (or any callable): its fields are the config's top-level keys.
    """

    def decorate(f: Callable[[Any, Path], Any]) -> Callable[[], Any]:
        def app() -> Any:
            import hydra

            composed = False

            @hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=name)
            def task(config: Any) -> Any:
                from hydra.core.hydra_config import HydraConfig

                nonlocal composed
                composed = True
                try:
                    node = validate(_plain(config), schema=schema)
                    return f(node, Path(HydraConfig.get().runtime.output_dir))
                except (ValueError, OSError) as error:
                    _stop(error)

            try:
                return task()
            except SystemExit:
                # Hydra says which override it rejects, but not which key was probably meant.
                for hint in [] if composed else _override_hints(name, sys.argv[1:]):
                    print(hint, file=sys.stderr)
                raise

        return app

    return decorate


def _override_hints(name: str, argv: list[str]) -> list[str]:
    try:
        keys = _dotted(compose_unresolved(name))
    except Exception:
        return []
    given = [a.partition("=")[0].lstrip("+~").split("@")[0] for a in argv if "=" in a and not a.startswith("-")]
    unknown = [k for k in given if k not in keys and not k.startswith("hydra")]
    return [f"{k!r} is not a key of {name!r}.{nearest(k, keys)}" for k in unknown if "/" not in k]


def compose_unresolved(name: str) -> Node:
    """Return a config with its interpolations and missing values as they are written."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    GlobalHydra.instance().clear()
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return typing.cast(Node, OmegaConf.to_container(hydra_compose(name), resolve=False))


def _dotted(node: Any, path: str = "") -> list[str]:
    if not isinstance(node, Mapping):
        return [path]
    below = [key for k, value in node.items() for key in _dotted(value, _join(path, str(k)))]
    return [path, *below] if path else below
