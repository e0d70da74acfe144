"""Laws of the loss curve under any learning-rate schedule: forms over the rows of an `Exposure`.

A form is made for given schedules; with the same parameters, a form of other schedules predicts these.
"""

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab.config import Given
from adaptlab.scaling.annealing import Exposure
from adaptlab.scaling.form import Form, Parameter, Ranges, Values
from adaptlab.scaling.points import Points

__all__ = ["area_law", "immediate_law", "momentum_law", "multi_power_law"]

_INPUTS = ("area", "row")
_BASE = (
    Parameter("L0", low=0.0, log=True, meaning="the loss that is left"),
    Parameter("A", low=0.0, log=True, meaning="amplitude of the area's power"),
    Parameter("alpha", low=0.0, high=3.0, start=(0.2, 0.8), meaning="exponent of the area"),
)
_GAIN = Parameter("B", low=0.0, log=True, meaning="gain per drop")


def area_law(exposure: Given) -> Form:
    """A power of the area under the learning rate, blind to annealing: the other two laws without their last term.

        L(t) = L0 + A S1(t)^-alpha,    S1(t) = sum_{i<=t} eta_i

    Reference: arXiv:2408.11029 with C = 0.
    """
    return Form("area", _INPUTS, _BASE, _area, _area_starts, "L0 + A S1^-alpha", "arXiv:2408.11029, C = 0")


def momentum_law(exposure: Given) -> Form:
    """Tissue et al.'s law: annealing lowers the loss by a decayed sum of the drops so far.

        L(t) = L0 + A S1(t)^-alpha - C S2(t),    S1(t) = sum_{i<=t} eta_i
        S2(t) = sum_{i<=t} sum_{k<=i} (eta_{k-1} - eta_k) lambda^(i-k)
              = sum_{k<=t} (eta_{k-1} - eta_k) (1 - lambda^(t-k+1)) / (1 - lambda)

    `decay` is 1 - lambda and is fitted with the rest; the paper sets lambda by hand, near 0.999.

    Reference: arXiv:2408.11029.
    """
    own = (
        Parameter("C", low=0.0, log=True, meaning="gain per annealing"),
        Parameter("decay", low=1e-7, high=1.0, log=True, start=(1e-4, 1e-2), meaning="1 - lambda, per step"),
    )

    def predict(values: Values, x: Values) -> jax.Array:
        response_P = -jnp.expm1(exposure.steps_P * jnp.log1p(-values["decay"])) / values["decay"]
        return _area(values, x) - values["C"] * _summed(exposure, response_P)[_rows(x)]

    def starts(points: Points) -> Ranges:
        """C such that all drops together, long ago, lower the loss by 1 to 30 per cent of the fall seen."""
        fall, dropped = _fall_and_drop(exposure)
        steps = 1e3  # the memory 1 / (1 - lambda) that the paper finds
        return {**_area_starts(points), "C": (0.01 * fall / dropped / steps, 0.3 * fall / dropped / steps)}

    equation = "L0 + A S1^-alpha - C S2"
    return Form("momentum", _INPUTS, (*_BASE, *own), predict, starts, equation, "arXiv:2408.11029")


def immediate_law(exposure: Given, peak: float | None = None) -> Form:
    """A drop of the learning rate gains at once all that it ever will: the multi-power law's limit of G = 1.

        L(t) = L0 + A S1(t)^-alpha - B (eta_max - eta_t),    S1(t) = sum_{i<=t} eta_i

    Args:
      exposure: the rows.
      peak: eta_max; None takes the highest learning rate of all rows. Another one is another L0, and the same law.

    Reference: arXiv:2503.12811, where the fit of the multi-power law begins.
    """
    highest = float(exposure.lr.max()) if peak is None else peak

    def predict(values: Values, x: Values) -> jax.Array:
        return _area(values, x) - values["B"] * (highest - jnp.asarray(exposure.lr)[_rows(x)])

    def starts(points: Points) -> Ranges:
        """B such that all drops together lower the loss by 3 to 100 per cent of the fall seen."""
        fall, dropped = _fall_and_drop(exposure)
        return {**_area_starts(points), "B": (0.03 * fall / dropped, fall / dropped)}

    equation = "L0 + A S1^-alpha - B (lr_max - lr)"
    return Form("immediate", _INPUTS, (*_BASE, _GAIN), predict, starts, equation, "arXiv:2503.12811, G = 1")


def multi_power_law(exposure: Given) -> Form:
    """Luo et al.'s law: each drop lowers the loss by a power law of the area since then.

        L(t) = L0 + A S1(t)^-alpha - B sum_{k<=t} (eta_{k-1} - eta_k) G(eta_k^-gamma S_k(t))
        G(x) = 1 - (1 + C x)^-beta,    S1(t) = sum_{i<=t} eta_i,    S_k(t) = sum_{k<=i<=t} eta_i

    S1 includes the warm-up, whose area the paper writes as S_W.

    Reference: arXiv:2503.12811.
    """
    own = (
        _GAIN,
        Parameter("C", low=0.0, log=True, meaning="rate of the gain's growth"),
        Parameter("beta", low=0.0, high=5.0, start=(0.2, 0.9), meaning="exponent of the gain's growth"),
        Parameter("gamma", low=0.0, high=3.0, start=(0.2, 0.9), meaning="exponent of the learning rate behind a drop"),
    )

    def predict(values: Values, x: Values) -> jax.Array:
        reach_P = values["C"] * jnp.exp(-values["gamma"] * exposure.log_rate_P) * exposure.since_P
        response_P = -jnp.expm1(-values["beta"] * jnp.log1p(reach_P))
        return _area(values, x) - values["B"] * _summed(exposure, response_P)[_rows(x)]

    def starts(points: Points) -> Ranges:
        """B such that all drops together lower the loss by 3 to 100 per cent of the fall seen.

        C is such that a drop's gain begins to saturate between 0.1 and 100 per cent of the largest area since one.
        """
        fall, dropped = _fall_and_drop(exposure)
        reach = np.exp(-0.5 * exposure.log_rate_P) * exposure.since_P
        most = float(reach.max()) if reach.size else 1.0
        own = {"B": (0.03 * fall / dropped, fall / dropped), "C": (1.0 / most, 1000.0 / most)}
        return {**_area_starts(points), **own}

    equation = "L0 + A S1^-alpha - B sum_k drop_k (1 - (1 + C lr_k^-gamma S_k)^-beta)"
    return Form("multi_power", _INPUTS, (*_BASE, *own), predict, starts, equation, "arXiv:2503.12811")


def _area(values: Values, x: Values) -> jax.Array:
    return values["L0"] + values["A"] * jnp.exp(-values["alpha"] * jnp.log(x["area"]))


def _rows(x: Values) -> jax.Array:
    return x["row"].astype(int)


def _summed(exposure: Exposure, response_P: jax.Array) -> jax.Array:
    """The sum of size times response over the drops before each row, `(n,)`."""
    count = len(exposure.area)
    return jax.ops.segment_sum(exposure.size_P * response_P, exposure.row_P, count, indices_are_sorted=True)


def _area_starts(points: Points) -> Ranges:
    """L0 below the lowest loss; A such that the fall so far is of the order of the one seen."""
    low, fall = points.y.min(), float(np.ptp(points.y)) or 0.1 * points.y.min()
    scale = float(np.median(points.x["area"])) ** 0.5
    return {"L0": (0.5 * low, 0.99 * low), "A": (0.1 * fall * scale, 2.0 * fall * scale)}


def _fall_and_drop(exposure: Exposure) -> tuple[float, float]:
    """By how much the loss falls over all rows, and the largest sum of drops before one."""
    fall = float(np.ptp(exposure.loss)) or 0.1 * float(exposure.loss.min())
    sums = np.bincount(exposure.row_P, np.abs(exposure.size_P), len(exposure.loss))
    return fall, float(sums.max()) or 1.0
