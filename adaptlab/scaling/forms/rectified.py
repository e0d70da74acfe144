"""Fine-tuning loss with a phase before the power law sets in."""

from typing import Any

import jax
import jax.numpy as jnp

from adaptlab.scaling.form import Form, Parameter, raised
from adaptlab.scaling.points import Points

__all__ = ["rectified"]


def rectified() -> Form:
    """L(D) = B / (D_l + D^beta) + E (Lin et al., arXiv:2402.02314).

    Their project page raises the whole to one more exponent, which is 1 here: with it tests meet the
    error that they report.

    Inputs: D, examples (or tokens) fine-tuned on; 0 is allowed. Parameters:
      B, beta: amplitude and exponent of the power law at large D.
      D_l: what pre-training has learnt of the task, in units of D^beta: below it the curve is flat.
      E: irreducible loss.
    """
    parameters = (
        Parameter("B", 0.0, log=True, meaning="amplitude"),
        Parameter("D_l", 0.0, log=True, meaning="data learnt before"),
        Parameter("beta", 0.0, start=(0.1, 1.5), meaning="exponent"),
        Parameter("E", 0.0, log=True, meaning="irreducible loss"),
    )
    equation = "L = B / (D_l + D^beta) + E"
    return Form("rectified", ("D",), parameters, _predict, _starts, equation, "arXiv:2402.02314")


def _predict(v: Any, x: Any) -> jax.Array:
    some = x["D"] > 0
    learnt = jnp.where(some, raised(jnp.where(some, x["D"], 1.0), v["beta"]), 0.0)
    return v["B"] / (v["D_l"] + learnt) + v["E"]


def _starts(points: Points) -> dict[str, tuple[float, float]]:
    low, high, most = float(points.y.min()), float(points.y.max()), float(points.x["D"].max())
    return {"E": (0.02 * low, low), "D_l": (0.1, most), "B": (0.1 * high, 10 * high * most)}
