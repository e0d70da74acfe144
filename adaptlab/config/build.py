"""Building what a config describes, whole or as a skeleton with its numbers taken out."""

import hashlib
import inspect
import json
from collections.abc import Callable, Mapping
from typing import Any

from adaptlab.config.check import (
    GIVEN,
    TRACED,
    ConfigError,
    is_call,
    join,
    locate,
    marked,
    parameters_of,
    takes_many,
    validate,
)

__all__ = ["config_hash", "fill", "instantiate", "merge", "split"]


def instantiate(node: Any, **given: Any) -> Any:
    """Call the factories of a tree, innermost first.

    Args:
      node: plain containers; a dict with `_target_` is a call.
      **given: what the program supplies: to the outermost factory by name, to those inside it where a parameter of
        that name is marked `GIVEN`.
    """
    if is_call(node):
        return _called(node, given, lambda parameter: True)
    return _inside(node, given)


def _inside(node: Any, given: Mapping[str, Any]) -> Any:
    """Build what stands inside a call: of what is given, a factory here gets only what it asks for by its mark."""
    if is_call(node):
        return _called(node, given, lambda parameter: marked(parameter, GIVEN))
    if isinstance(node, Mapping):
        return {key: _inside(value, given) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_inside(value, given) for value in node]
    return node


def _called(node: Mapping[str, Any], given: Mapping[str, Any], takes: Callable[[inspect.Parameter], bool]) -> Any:
    target, parameters = node["_target_"], parameters_of(locate(node["_target_"]))
    written = {k: _inside(v, given) for k, v in node.items() if k != "_target_"}
    asked = {k: v for k, v in given.items() if k in parameters and takes(parameters[k])}
    for name, parameter in parameters.items():
        if name in written and name in asked:
            raise ConfigError(f"{target} is given its {name!r} here: leave it out of the config.")
        named = parameter.kind in (parameter.KEYWORD_ONLY, parameter.POSITIONAL_OR_KEYWORD)
        if named and parameter.default is parameter.empty and name not in written and name not in asked:
            raise ConfigError(
                f"{target} needs {name!r}, which nothing gives it here: write it, or choose a factory for this place."
            )
    return locate(target)(**written, **asked)


def split(node: Any, path: str = "") -> tuple[Any, dict[str, float]]:
    """Split a validated config in a static skeleton and the numbers that may differ between runs of one program.

    Returns:
      The config with `None` where a traced number stood, and `{dotted path: number}`; of a list of traced numbers,
      the i-th is called `path[i]`. `fill` undoes it.
    """
    numbers: dict[str, float] = {}
    if isinstance(node, Mapping):
        parameters = parameters_of(locate(node["_target_"])) if is_call(node) else {}
        skeleton: Any = {}
        for key, value in node.items():
            here = join(path, key)
            if isinstance(value, int | float) and key in parameters and marked(parameters[key], TRACED):
                skeleton[key], numbers[here] = None, float(value)
            elif isinstance(value, list | tuple) and key in parameters and takes_many(parameters[key], TRACED):
                skeleton[key] = [None] * len(value)
                numbers |= {f"{here}[{i}]": float(one) for i, one in enumerate(value)}
            else:
                skeleton[key], below = split(value, here)
                numbers |= below
        return skeleton, numbers
    return node, numbers


def fill(skeleton: Any, numbers: Mapping[str, Any], path: str = "") -> Any:
    """Put numbers, traced or not, back where `split` found them."""
    if path in numbers:
        return numbers[path]
    if isinstance(skeleton, Mapping):
        return {key: fill(value, numbers, join(path, key)) for key, value in skeleton.items()}
    if isinstance(skeleton, list):
        return [fill(value, numbers, f"{path}[{i}]") for i, value in enumerate(skeleton)]
    return skeleton


def merge(node: Any, changes: Any, path: str = "") -> Any:
    """Return a validated config with changes, validated again.

    A mapping without `_target_` is merged key by key; one with its own `_target_`, like any other value, replaces what
    was there.

    Args:
      node: the config.
      changes: what is different.
      path: where the changes stand, for errors.
    """
    return validate(_merged(node, changes), path)


def _merged(node: Any, changes: Any) -> Any:
    if not isinstance(changes, Mapping) or not isinstance(node, Mapping) or is_call(changes):
        return changes
    return {**node, **{key: _merged(node.get(key), value) for key, value in changes.items()}}


def config_hash(node: Any) -> str:
    """SHA-256 of a config's canonical JSON."""
    return hashlib.sha256(json.dumps(node, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
