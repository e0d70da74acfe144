"""Power laws in one input, with and without a floor and a shift."""

import functools
import math
from typing import Any

import jax

from adaptlab.scaling.form import Form, Parameter, raised
from adaptlab.scaling.points import Points

__all__ = ["power"]


@functools.cache
def power(*, offset: bool = True, shifted: bool = False) -> Form:
    """y = E + A / (x + x_0)^alpha, the common shape of learning curves (Hestness et al., arXiv:1712.00409).

    Inputs: x, a positive scale: data, parameters, compute, steps. Parameters:
      E: what is left at infinite scale; 0 without `offset`.
      A, alpha: amplitude and exponent. Without `offset` alpha may be negative, so that growth laws fit too.
      x_0: the scale that was there before the first x; 0 unless `shifted`.

    Args:
      offset: whether there is an E.
      shifted: whether there is an x_0.
    """
    floor = Parameter("E", 0.0, log=True, meaning="irreducible loss")
    amplitude = Parameter("A", 0.0, log=True, meaning="amplitude")
    low = 0.0 if offset or shifted else -math.inf
    exponent = Parameter("alpha", low, start=(0.05 if low == 0 else -1.5, 1.5), meaning="exponent")
    shift = Parameter("x_0", 0.0, log=True, meaning="earlier scale")
    parameters = (*[floor] * offset, amplitude, exponent, *[shift] * shifted)
    equation = ("y = E + A / " if offset else "y = A / ") + ("(x + x_0)^alpha" if shifted else "x^alpha")
    predict = {(0, 0): _plain, (1, 0): _offset, (0, 1): _shifted, (1, 1): _both}[offset, shifted]
    starts = _floor_starts if offset else _starts
    return Form("power", ("x",), parameters, predict, starts, equation, "arXiv:1712.00409")


def _plain(v: Any, x: Any) -> jax.Array:
    return v["A"] * raised(x["x"], -v["alpha"])


def _offset(v: Any, x: Any) -> jax.Array:
    return v["E"] + _plain(v, x)


def _shifted(v: Any, x: Any) -> jax.Array:
    return v["A"] * raised(x["x"] + v["x_0"], -v["alpha"])


def _both(v: Any, x: Any) -> jax.Array:
    return v["E"] + _shifted(v, x)


def _starts(points: Points) -> dict[str, tuple[float, float]]:
    """A within what a start's alpha of 0 to 1.5 makes of the largest y; x_0 about the inputs' range."""
    x, top = points.x["x"], float(abs(points.y).max())
    return {"A": (0.1 * top, 10 * top * float(x.max())), "x_0": (1e-2 * float(x.min()), float(x.max()))}


def _floor_starts(points: Points) -> dict[str, tuple[float, float]]:
    low = float(points.y.min())
    return _starts(points) | {"E": (0.1 * low, low)}
