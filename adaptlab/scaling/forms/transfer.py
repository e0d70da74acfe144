"""What pre-training is worth in data."""

from typing import Any

import jax

from adaptlab.scaling.form import Form, Parameter, raised
from adaptlab.scaling.forms.kaplan import kaplan, kaplan_loss
from adaptlab.scaling.points import Points

__all__ = ["transfer", "transfer_loss"]

_PARAMETERS = (
    Parameter("k", 0.0, log=True, meaning="amplitude"),
    Parameter("alpha", start=(0.05, 1.0), meaning="exponent of D"),
    Parameter("beta", start=(0.05, 1.0), meaning="exponent of N"),
)


def transfer() -> Form:
    """D_T = k D^alpha N^beta, effective data transferred (Hernandez et al., arXiv:2102.01293).

    y is D_T: how much more data of the target a model from scratch needs to reach the loss of the fine-tuned one.

    Inputs: D, the data fine-tuned on; N, parameters. Parameters:
      k: amplitude.
      alpha: exponent of D; how close the pre-training distribution is to the target's.
      beta: exponent of N.
    """
    return Form("transfer", ("D", "N"), _PARAMETERS, _transferred, _starts, "D_T = k D^alpha N^beta", _SOURCE)


def transfer_loss() -> Form:
    """L = [(N_c / N)^(alpha_N / alpha_D) + D_c / (D + k D^alpha N^beta)]^alpha_D (from arXiv:2102.01293).

    The loss of a fine-tuned model: `kaplan` of the data there is and the data that pre-training is worth. Form as used
    here.

    Inputs: D, the data fine-tuned on; N, parameters. Parameters: those of `transfer` and of `kaplan`. Points from
    scratch are needed too if all seven are to be told apart; give them D's of a size that transfer does not matter at.
    """
    equation = "L = [(N_c / N)^(alpha_N / alpha_D) + D_c / (D + k D^alpha N^beta)]^alpha_D"
    parameters = (*_PARAMETERS, *kaplan().parameters)
    return Form(
        "transfer_loss", ("D", "N"), parameters, _loss, _loss_starts, equation, "arXiv:2102.01293, as used here"
    )


_SOURCE = "arXiv:2102.01293"


def _transferred(v: Any, x: Any) -> jax.Array:
    return v["k"] * raised(x["D"], v["alpha"]) * raised(x["N"], v["beta"])


def _loss(v: Any, x: Any) -> jax.Array:
    return kaplan_loss(v, x["N"], x["D"] + _transferred(v, x))


def _starts(points: Points) -> dict[str, tuple[float, float]]:
    top = float(points.y.max())
    return {"k": (1e-3 * top / (float(points.x["D"].max()) * float(points.x["N"].max())), top)}


def _loss_starts(points: Points) -> dict[str, tuple[float, float]]:
    return kaplan().starts(points) | {"k": (1e-4, 1e6)}
