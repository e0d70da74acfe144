"""The four estimators of learning curves that Alabdulmohsin et al. compare (arXiv:2209.06640); forms as used here."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from adaptlab.scaling.form import Form, Parameter, raised
from adaptlab.scaling.points import Points

__all__ = ["m1", "m2", "m3", "m4"]

_SOURCE = "arXiv:2209.06640"
_BETA = Parameter("beta", 0.0, log=True, meaning="amplitude")
_C = Parameter("c", high=0.0, start=(-1.5, -0.05), meaning="exponent")
_LIMIT = Parameter("e_inf", 0.0, log=True, meaning="limit at infinite scale")


def m1() -> Form:
    """y = beta x^c, c < 0: a power law without a limit. Inputs: x."""
    return Form("m1", ("x",), (_BETA, _C), _m1, _starts, "y = beta x^c", _SOURCE)


def m2() -> Form:
    """y = beta x^c + e_inf, c < 0: a power law towards the limit e_inf. Inputs: x. The same law as `power()`."""
    return Form("m2", ("x",), (_BETA, _C, _LIMIT), _m2, _starts, "y = beta x^c + e_inf", _SOURCE)


def m3() -> Form:
    """y = beta (1 / x + gamma)^-c, c < 0: a power law that levels off at beta gamma^-c once x is above 1 / gamma.

    Inputs: x.
    """
    gamma = Parameter("gamma", 0.0, log=True, meaning="inverse of the scale where it levels off")
    return Form("m3", ("x",), (_BETA, _C, gamma), _m3, _starts, "y = beta (1 / x + gamma)^-c", _SOURCE)


def m4() -> Form:
    """(y - e_inf) / (e_0 - y)^alpha = beta x^c, c < 0: a sigmoid in log x from e_0 down to e_inf.

    Inputs: x. Parameters:
      beta, c: the power law in the middle.
      e_inf: the limit at infinite scale.
      e_0: the limit at scale 0, e.g. that of guessing.
      alpha: how the curve leaves e_0; with alpha = 0 it is `m2`. At most 20: beyond it and e_0 cannot be told apart.

    With v = (y - e_inf) / (e_0 - e_inf) the law reads log v - alpha log(1 - v) = log(beta x^c (e_0 - e_inf)^(alpha-1)),
    whose left side increases in v; it is solved for logit v by Newton's method, which converges from anywhere as the
    function is convex or concave throughout.
    """
    parameters = (
        _BETA,
        _C,
        _LIMIT,
        Parameter("e_0", 0.0, log=True, meaning="limit at scale 0"),
        Parameter("alpha", 0.0, 20.0, start=(0.1, 2.0), meaning="exponent at the upper limit"),
    )
    equation = "(y - e_inf) / (e_0 - y)^alpha = beta x^c"
    return Form("m4", ("x",), parameters, _m4, _starts, equation, _SOURCE)


def _m1(v: Any, x: Any) -> jax.Array:
    return v["beta"] * raised(x["x"], v["c"])


def _m2(v: Any, x: Any) -> jax.Array:
    return _m1(v, x) + v["e_inf"]


def _m3(v: Any, x: Any) -> jax.Array:
    return v["beta"] * raised(1 / x["x"] + v["gamma"], -v["c"])


def _m4(v: Any, x: Any) -> jax.Array:
    span, alpha = v["e_0"] - v["e_inf"], v["alpha"]
    right = jnp.log(v["beta"]) + v["c"] * jnp.log(x["x"]) + (alpha - 1) * jnp.log(span)

    def newton(t: jax.Array, alpha: jax.Array, right: jax.Array) -> jax.Array:
        gap = alpha * jax.nn.softplus(t) - jax.nn.softplus(-t) - right
        return t - gap / (jax.nn.sigmoid(-t) + alpha * jax.nn.sigmoid(t))

    fixed_alpha, fixed_right = jax.lax.stop_gradient((alpha, right))
    below = fixed_right < (fixed_alpha - 1) * math.log(2)
    t = jnp.where(below, fixed_right, fixed_right / jnp.maximum(fixed_alpha, 1e-3))
    t = jax.lax.fori_loop(0, 8, lambda _, t: newton(t, fixed_alpha, fixed_right), t)
    # From the root, a step of Newton's method has the root's first derivatives, and two have the second ones.
    for _ in range(2):
        t = newton(t, alpha, right)
    return v["e_inf"] + span * jax.nn.sigmoid(t)


def _starts(points: Points) -> dict[str, tuple[float, float]]:
    x, y = points.x["x"], abs(points.y)
    low, high = float(y.min()), float(y.max())
    return {
        "beta": (0.1 * high, 10 * high * float(x.max())),
        "e_inf": (0.1 * low, low),
        "e_0": (1.01 * high, 3 * high),
        "gamma": (0.1 / float(x.max()), 1 / float(x.min())),
    }
