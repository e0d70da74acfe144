"""Smoothly broken power laws."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from adaptlab.scaling.form import Form, Parameter
from adaptlab.scaling.points import Points

__all__ = ["bnsl"]


@functools.cache
def bnsl(*, breaks: int = 1) -> Form:
    """y = a + b x^-c_0 prod_i (1 + (x / d_i)^(1 / f_i))^(-c_i f_i) (Caballero et al., arXiv:2210.14891).

    Inputs: x. Parameters:
      a: the limit.
      b, c_0: amplitude and exponent of the first piece.
      d_i, c_i, f_i: where break i is, how much the exponent grows there (it may fall, so that the curve turns up), and
        how wide the break is in log x.

    Args:
      breaks: how many, 0 to 5. With 0 it is `power()`.
    """
    if not 0 <= breaks <= 5:
        raise ValueError(f"breaks must be 0 to 5, got {breaks}: each adds three parameters.")
    parameters = [
        Parameter("a", 0.0, log=True, meaning="limit"),
        Parameter("b", 0.0, log=True, meaning="amplitude"),
        Parameter("c_0", start=(-0.2, 1.0), meaning="first exponent"),
    ]
    for i in range(1, breaks + 1):
        parameters += [
            Parameter(f"c_{i}", start=(-1.0, 1.0), meaning=f"change of exponent at break {i}"),
            Parameter(f"d_{i}", 0.0, log=True, meaning=f"where break {i} is"),
            Parameter(f"f_{i}", 0.0, log=True, start=(0.05, 1.0), meaning=f"width of break {i}"),
        ]
    equation = "y = a + b x^-c_0 prod_i (1 + (x / d_i)^(1 / f_i))^(-c_i f_i)"
    return Form("bnsl", ("x",), tuple(parameters), _predict, _starts, equation, "arXiv:2210.14891")


def _predict(v: Any, x: Any) -> jax.Array:
    log_x = jnp.log(x["x"])
    exponent = -v["c_0"] * log_x
    for i in range(1, (len(v) - 3) // 3 + 1):
        exponent = exponent - v[f"c_{i}"] * v[f"f_{i}"] * jax.nn.softplus((log_x - jnp.log(v[f"d_{i}"])) / v[f"f_{i}"])
    return v["a"] + v["b"] * jnp.exp(exponent)


def _starts(points: Points) -> dict[str, tuple[float, float]]:
    """Break i lies in its share of the inputs' range (starts that differ in order alone would be the same law)."""
    x, y = points.x["x"], abs(points.y)
    low, high, top = float(x.min()), float(x.max()), float(y.max())
    breaks = {f"d_{i}": (low, high) for i in range(1, 6)}
    return {"a": (0.01 * float(y.min()), float(y.min())), "b": (0.1 * top, 10 * top * high), **breaks}
