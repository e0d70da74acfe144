"""Fine-tuning loss as a product of two power laws."""

from typing import Any

import jax

from adaptlab.scaling.form import Form, Parameter, raised
from adaptlab.scaling.points import Points

__all__ = ["joint"]


def joint() -> Form:
    """L(X, D) = A / (X^alpha D^beta) + E (Zhang et al., arXiv:2402.17193).

    Inputs: X, one other factor: model size, pre-training data, or tuned parameters; D, fine-tuning data. Parameters:
      A: amplitude, of the task and the factor.
      alpha: exponent of X.
      beta: exponent of D, which the paper finds to be the same whatever X is.
      E: irreducible loss.
    """
    parameters = (
        Parameter("A", 0.0, log=True, meaning="amplitude"),
        Parameter("alpha", start=(0.0, 0.5), meaning="exponent of X"),
        Parameter("beta", start=(0.0, 0.5), meaning="exponent of D"),
        Parameter("E", 0.0, log=True, meaning="irreducible loss"),
    )
    equation = "L = A / (X^alpha D^beta) + E"
    return Form("joint", ("X", "D"), parameters, _predict, _starts, equation, "arXiv:2402.17193")


def _predict(v: Any, x: Any) -> jax.Array:
    return v["A"] * raised(x["X"], -v["alpha"]) * raised(x["D"], -v["beta"]) + v["E"]


def _starts(points: Points) -> dict[str, tuple[float, float]]:
    low, high = float(points.y.min()), float(points.y.max())
    reach = float(points.x["X"].max() * points.x["D"].max()) ** 0.5
    return {"E": (0.05 * low, low), "A": (0.1 * high, 10 * high * reach)}
