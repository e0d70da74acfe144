"""Loss as a function of parameters and tokens, without a floor."""

from typing import Any

import jax

from adaptlab.scaling.form import Form, Parameter, raised
from adaptlab.scaling.points import Points

__all__ = ["kaplan", "kaplan_loss"]


def kaplan() -> Form:
    """L(N, D) = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D (Kaplan et al., arXiv:2001.08361).

    Inputs: N, parameters without embeddings; D, tokens. Parameters:
      N_c, alpha_N: L = (N_c / N)^alpha_N with data without end.
      D_c, alpha_D: L = (D_c / D)^alpha_D with an infinite model.
    """
    parameters = (
        Parameter("N_c", 0.0, log=True, meaning="critical parameters"),
        Parameter("alpha_N", 0.0, start=(0.03, 1.0), meaning="exponent of N"),
        Parameter("D_c", 0.0, log=True, meaning="critical tokens"),
        Parameter("alpha_D", 0.0, start=(0.03, 1.0), meaning="exponent of D"),
    )
    equation = "L = [(N_c / N)^(alpha_N / alpha_D) + D_c / D]^alpha_D"
    return Form("kaplan", ("N", "D"), parameters, _predict, _starts, equation, "arXiv:2001.08361")


def kaplan_loss(v: Any, n: Any, d: Any) -> jax.Array:
    """The right-hand side at N = n and D = d."""
    return raised(raised(v["N_c"] / n, v["alpha_N"] / v["alpha_D"]) + v["D_c"] / d, v["alpha_D"])


def _predict(v: Any, x: Any) -> jax.Array:
    return kaplan_loss(v, x["N"], x["D"])


def _starts(points: Points) -> dict[str, tuple[float, float]]:
    # A loss of a few nats at an exponent near 0.1 puts the critical scales far above all that was measured.
    names = {"N_c": "N", "D_c": "D"}
    return {c: (float(points.x[name].min()), 1e6 * float(points.x[name].max())) for c, name in names.items()}
