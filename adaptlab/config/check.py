"""Checking a config against the signatures it calls, before anything loads."""

import dataclasses
import difflib
import functools
import importlib
import inspect
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar

__all__ = [
    "GIVEN",
    "TRACED",
    "AtMost",
    "BelowOne",
    "ConfigError",
    "Count",
    "Given",
    "Interval",
    "Node",
    "NonNegative",
    "Positive",
    "Share",
    "Traced",
    "is_call",
    "join",
    "locate",
    "marked",
    "nearest",
    "parameters_of",
    "takes_many",
    "validate",
]

TRACED = "a number that may differ between runs of one program"
GIVEN = "supplied by the program, not by the config"

Traced = Annotated[Any, TRACED]
"""Marks a factory's parameter as a number that may be a traced value: no `float(x)`, no Python branch on it.

`Sequence[Traced]` is a parameter of several such numbers. How many there are is static.
"""


class Interval(NamedTuple):
    """Marks a factory's parameter as a number that lies in an interval; `ends` says which of its ends belong to it."""

    low: float
    high: float = float("inf")
    ends: str = "[]"

    def holds(self, x: float) -> bool:
        """Whether a number lies in it; NaN lies in none."""
        above = self.low <= x if self.ends[0] == "[" else self.low < x
        return above and (x <= self.high if self.ends[1] == "]" else x < self.high)

    def __str__(self) -> str:
        return f"{self.ends[0]}{self.low:g}, {self.high:g}{self.ends[1]}"


class AtMost(NamedTuple):
    """Marks a factory's parameter as a number that is at most as large as another parameter."""

    other: str


NonNegative = Annotated[Traced, Interval(0, ends="[)")]
Positive = Annotated[Traced, Interval(0, ends="()")]
Share = Annotated[Traced, Interval(0, 1)]
"""A part of a whole, both of its ends included."""
BelowOne = Annotated[Traced, Interval(0, 1, "[)")]
"""A decay, a momentum or a dropout rate: at 1 nothing would be left."""
Count = Annotated[int, Interval(1, ends="[)")]

Given = Annotated[Any, GIVEN]
"""Marks a factory's parameter as one that the program passes to `instantiate`, such as the number of steps."""

Node = dict[str, Any]
Mark = TypeVar("Mark")


class ConfigError(ValueError):
    """A config that says something its factories do not understand."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the choice most like `name`, or nothing."""
    close = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return f" Did you mean {close[0]!r}?" if close else ""


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
def parameters_of(factory: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return a factory's parameters, with their annotations resolved."""
    # Annotations may be strings; the hints that cannot be resolved (array shapes) are not for configs anyway.
    try:
        hints = typing.get_type_hints(factory, include_extras=True)
    except Exception:
        if dataclasses.is_dataclass(factory):
            raise  # a study's own schema: without its hints, its sections would go unchecked
        hints = {}
    parameters = inspect.signature(factory).parameters
    return {n: p.replace(annotation=hints.get(n, Any)) for n, p in parameters.items()}


def marked(parameter: inspect.Parameter, mark: str) -> bool:
    """Whether a parameter's annotation, or a member of its union, carries a mark."""
    return any(mark in getattr(hint, "__metadata__", ()) for hint in _alternatives(parameter.annotation))


def takes_many(parameter: inspect.Parameter, mark: str) -> bool:
    """Whether a parameter takes a sequence whose items carry a mark, as `Sequence[Traced]` says."""
    return any(
        typing.get_origin(hint) is Sequence and mark in getattr(item, "__metadata__", ())
        for hint in _alternatives(parameter.annotation)
        for item in typing.get_args(hint)
    )


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The members of a union, or the hint itself."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def is_call(value: Any) -> bool:
    """Whether a config node names a factory."""
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
      ConfigError: an unknown, missing or mistyped key, or a number out of its interval; names the path, the value, the
        choices and the nearest name.
    """
    if isinstance(node, Mapping):
        factory = locate(node["_target_"], path) if "_target_" in node else schema
        if factory is not None:
            return _validate_call(dict(node), path, factory)
        return {key: validate(value, join(path, key)) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [validate(value, f"{path}[{i}]") for i, value in enumerate(node)]
    return node


def join(path: str, key: str) -> str:
    """Return a dotted path, one key longer."""
    return f"{path}.{key}" if path else str(key)


def _validate_call(node: Node, path: str, factory: Callable[..., Any]) -> Node:
    parameters = parameters_of(factory)
    named = {
        n: p for n, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL) and not marked(p, GIVEN)
    }
    title = node.get("_target_", getattr(factory, "__name__", "the study"))
    if not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        for key in node.keys() - named.keys() - {"_target_"}:
            raise ConfigError(
                f"{join(path, key)}={node[key]!r}: {title} has no parameter {key!r}.{nearest(key, named)} "
                f"It takes: {sorted(named)}."
            )
    done = {"_target_": node["_target_"]} if "_target_" in node else {}
    for key, parameter in named.items():
        if key in node:
            done[key] = _validate_value(node[key], join(path, key), parameter, title)
        elif parameter.default is inspect.Parameter.empty:
            raise ConfigError(f"{join(path, key)}: {title} needs {key!r} and the config does not give it.")
        elif isinstance(parameter.default, int | float | str | bool | None | list | tuple | dict):
            done[key] = validate(parameter.default, join(path, key))
    _check_order(done, path, named, title)
    return done | {k: validate(v, join(path, k)) for k, v in node.items() if k not in done}


def _check_order(done: Node, path: str, parameters: Mapping[str, inspect.Parameter], title: str) -> None:
    """Raise ConfigError for a number that is larger than the one it is to be at most."""
    for key, parameter in parameters.items():
        for mark in _marks(parameter, AtMost):
            value, most = done.get(key), done.get(mark.other)
            if isinstance(value, int | float) and isinstance(most, int | float) and value > most:
                raise ConfigError(f"{join(path, key)}={value!r}: {title} expects at most {mark.other}={most!r}.")


def _validate_value(value: Any, path: str, parameter: inspect.Parameter, title: str) -> Any:
    """Check one argument. A dataclass, or a dict of dataclasses by name, is the schema of what stands below it."""
    hint = parameter.annotation
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping) and not is_call(value):
        return validate(value, path, typing.cast(Callable[..., Any], hint))
    if typing.get_origin(hint) is dict and isinstance(value, Mapping):
        below = typing.get_args(hint)[1]
        if dataclasses.is_dataclass(below):
            return {name: validate(part, join(path, name), typing.cast(Any, below)) for name, part in value.items()}
    _check_type(value, parameter, path, title)
    return validate(value, path)


def _check_type(value: Any, parameter: inspect.Parameter, path: str, title: str) -> None:
    from beartype.door import is_bearable

    hint: Any = parameter.annotation
    if marked(parameter, TRACED) or takes_many(parameter, TRACED):
        hint = Sequence[float] if takes_many(parameter, TRACED) else float
        if type(None) in typing.get_args(parameter.annotation):
            hint = hint | None
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    if is_call(value) or any(map(is_call, parts)):
        # What a call returns is not known yet; that it is no plain number or text is.
        if hint not in (int, float, str, bool):
            return
    elif is_bearable(value, hint) or is_bearable(_floats(value), hint):
        return _check_interval(value, parameter, path, title)
    expected = getattr(hint, "__name__", None) if isinstance(hint, type) else str(hint).replace("typing.", "")
    raise ConfigError(f"{path}={value!r}: {title} expects {expected}, not {type(value).__name__}.")


def _check_interval(value: Any, parameter: inspect.Parameter, path: str, title: str) -> None:
    if not isinstance(value, int | float):
        return
    for interval in _marks(parameter, Interval):
        if not interval.holds(value):
            raise ConfigError(f"{path}={value!r}: {title} expects a number in {interval}.")


def _marks(parameter: inspect.Parameter, kind: type[Mark]) -> Iterator[Mark]:
    """The marks of a kind that a parameter's annotation, or a member of its union, carries."""
    for hint in _alternatives(parameter.annotation):
        yield from (mark for mark in getattr(hint, "__metadata__", ()) if isinstance(mark, kind))


def _floats(value: Any) -> Any:
    """The value with its integers as floats: yaml writes 1.0 as 1."""
    if isinstance(value, list):
        return [_floats(one) for one in value]
    return float(value) if type(value) is int else value
