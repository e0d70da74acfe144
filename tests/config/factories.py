"""Factories with every kind of parameter, for the tests of configs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from adaptlab.config import GIVEN, AtMost, BelowOne, Count, NonNegative, Positive, Share, Traced


class Thing(NamedTuple):
    size: int
    rate: Any = 0.5
    kind: str = "plain"
    tags: Sequence[str] = ()
    inner: Any = None


def thing(
    size: int,
    *,
    rate: Traced = 0.5,
    kind: Literal["plain", "odd"] = "plain",
    tags: Sequence[str] = (),
    inner: Any = None,
) -> Thing:
    return Thing(size, rate, kind, tags, inner)


def stretched(rate: Traced, *, total_steps: Annotated[int, GIVEN], limit: Traced | None = None) -> dict[str, Any]:
    return {"rate": rate, "total_steps": total_steps, "limit": limit}


def bounded(
    count: Count = 1,
    *,
    used: Annotated[Traced, AtMost("count")] | None = None,
    rate: NonNegative = 0.0,
    clip: Positive | None = None,
    share: Share = 1.0,
    b1: BelowOne = 0.0,
) -> tuple[Any, ...]:
    return count, used, rate, clip, share, b1


def stacked(each: Sequence[Traced], *, top: Sequence[Traced] | None = None, inner: Any = None) -> dict[str, Any]:
    return {"each": each, "top": top, "inner": inner}


def open_ended(first: int, **more: Any) -> dict[str, Any]:
    return {"first": first, **more}


@dataclass(frozen=True)
class Part:
    width: int
    name: str = "part"


@dataclass(frozen=True)
class Study:
    part: Part
    parts: dict[str, Part]
    seeds: list[int] = field(default_factory=list)
