"""Loss as a function of parameters and tokens, with a floor."""

from typing import Any

import jax

from adaptlab.scaling.form import Form, Parameter, raised
from adaptlab.scaling.points import Points

__all__ = ["chinchilla"]


def chinchilla() -> Form:
    """L(N, D) = E + A / N^alpha + B / D^beta, approach 3 of Hoffmann et al. (arXiv:2203.15556).

    Inputs: N, parameters; D, training tokens. Parameters:
      E: the loss of an infinite model on infinite data, the entropy of text.
      A, alpha: what a finite model adds.
      B, beta: what finite data adds.

    At C = 6 N D the best split is N = G (C / 6)^(beta / (alpha + beta)), G = (alpha A / (beta B))^(1 / (alpha + beta)).
    """
    parameters = (
        Parameter("E", 0.0, log=True, meaning="irreducible loss"),
        Parameter("A", 0.0, log=True, start=(1.0, 1e10), meaning="amplitude in N"),
        Parameter("alpha", 0.0, start=(0.05, 1.5), meaning="exponent of N"),
        Parameter("B", 0.0, log=True, start=(1.0, 1e10), meaning="amplitude in D"),
        Parameter("beta", 0.0, start=(0.05, 1.5), meaning="exponent of D"),
    )
    equation = "L = E + A / N^alpha + B / D^beta"
    return Form("chinchilla", ("N", "D"), parameters, _predict, _starts, equation, "arXiv:2203.15556")


def _predict(v: Any, x: Any) -> jax.Array:
    return v["E"] + v["A"] * raised(x["N"], -v["alpha"]) + v["B"] * raised(x["D"], -v["beta"])


def _starts(points: Points) -> dict[str, tuple[float, float]]:
    low = float(points.y.min())
    return {"E": (0.1 * low, low)}
