"""What fine-tuning costs on what was known before."""

from typing import Any

import jax

from adaptlab.scaling.form import Form, Parameter, raised
from adaptlab.scaling.points import Points

__all__ = ["forgetting"]


def forgetting() -> Form:
    """L(P, N) = s - ((a / P)^alpha + (b / N)^beta)^rho, a shifted power law in parameters and steps.

    Forgetting rises with tuned parameters and with steps, towards s. Kalajdzievski (arXiv:2401.05605) finds it to grow
    as a shifted power law in both, and to be linearly related to the fine-tuning loss. The form is as used here: a law
    of the fine-tuning loss ((a / P)^alpha + (b / N)^beta)^rho, turned over; the slope of the linear relation is in
    a and b.

    Inputs: P, parameters that are tuned; N, update steps (or examples). Parameters:
      s: the loss on old data that endless training of endlessly many parameters comes to.
      a, alpha: how few tuned parameters hold it down.
      b, beta: how few steps do.
      rho: how the two combine.
    """
    parameters = (
        Parameter("s", 0.0, log=True, meaning="limit"),
        Parameter("a", 0.0, log=True, meaning="scale of tuned parameters"),
        Parameter("alpha", 0.0, start=(0.05, 1.0), meaning="exponent of P"),
        Parameter("b", 0.0, log=True, meaning="scale of steps"),
        Parameter("beta", 0.0, start=(0.05, 1.0), meaning="exponent of N"),
        Parameter("rho", 0.0, log=True, start=(0.3, 3.0), meaning="combination"),
    )
    equation = "L = s - ((a / P)^alpha + (b / N)^beta)^rho"
    return Form("forgetting", ("P", "N"), parameters, _predict, _starts, equation, "arXiv:2401.05605, as used here")


def _predict(v: Any, x: Any) -> jax.Array:
    few = raised(v["a"] / x["P"], v["alpha"]) + raised(v["b"] / x["N"], v["beta"])
    return v["s"] - raised(few, v["rho"])


def _starts(points: Points) -> dict[str, tuple[float, float]]:
    high, (p, n) = float(points.y.max()), (points.x["P"], points.x["N"])
    # Below the smallest inputs, so that what is taken from s stays below 1 and the law positive.
    reach = {"a": (1e-4 * float(p.min()), float(p.min())), "b": (1e-4 * float(n.min()), float(n.min()))}
    return {"s": (high, 3 * high), **reach}
