"""Loss when data is repeated."""

from typing import Any

import jax
import jax.numpy as jnp

from adaptlab.scaling.form import Form, Parameter, raised
from adaptlab.scaling.forms.chinchilla import chinchilla
from adaptlab.scaling.points import Points

__all__ = ["data_constrained"]


def data_constrained() -> Form:
    """L = E + A / N'^alpha + B / D'^beta, of effective parameters N' and tokens D' (arXiv:2305.16264).

        D' = U_D + U_D R_D (1 - e^(-r_D / R_D)),   r_D = D / U_D - 1,   U_D = min(U, D)
        N' = U_N + U_N R_N (1 - e^(-r_N / R_N)),   r_N = N / U_N - 1,   U_N = min(N, G (G U_D)^(beta / alpha))
        G = (alpha A / (beta B))^(1 / (alpha + beta))

    A repeated token is worth less and less than a new one, and so is a parameter beyond those that are optimal for the
    unique tokens. Without repetition and at or below that size it is `chinchilla`.

    Inputs: N, parameters; D, tokens seen; U, unique tokens. Parameters: those of `chinchilla`, and
      R_D: repetitions after which they are worth 1 / e of new data.
      R_N: the same of excess parameters.

    The paper takes the parameters of `chinchilla` from unrepeated runs and estimates R_D and R_N afterwards; here all
    are estimated together.
    """
    parameters = (
        *chinchilla().parameters,
        Parameter("R_D", 0.0, log=True, start=(0.5, 100.0), meaning="decay of repeated data"),
        Parameter("R_N", 0.0, log=True, start=(0.5, 100.0), meaning="decay of excess parameters"),
    )
    equation = "L = E + A / N'^alpha + B / D'^beta"
    source = "arXiv:2305.16264"
    return Form("data_constrained", ("N", "D", "U"), parameters, _predict, _starts, equation, source)


def _predict(v: Any, x: Any) -> jax.Array:
    unique = jnp.minimum(x["U"], x["D"])
    log_g = jnp.log(v["alpha"] * v["A"] / (v["beta"] * v["B"])) / (v["alpha"] + v["beta"])
    optimal = jnp.exp(log_g + v["beta"] / v["alpha"] * (log_g + jnp.log(unique)))
    tokens = _effective(x["D"], unique, v["R_D"])
    model = _effective(x["N"], jnp.minimum(x["N"], optimal), v["R_N"])
    return v["E"] + v["A"] * raised(model, -v["alpha"]) + v["B"] * raised(tokens, -v["beta"])


def _effective(total: jax.Array, unique: jax.Array, decay: jax.Array) -> jax.Array:
    return unique - unique * decay * jnp.expm1(-(total / unique - 1) / decay)


def _starts(points: Points) -> dict[str, tuple[float, float]]:
    return chinchilla().starts(points)
