"""Information criteria: how well a law fits, less what its parameters would gain on noise alone."""

import math
from collections.abc import Sequence

import numpy as np

from adaptlab.scaling.fit import Fit, refuse_unless_minimum

__all__ = ["aicc", "bic", "comparable"]


def aicc(fit: Fit) -> float:
    """AICc = -2 log L + 2 k + 2 k (k + 1) / (n - k - 1), k the parameters and the noise's scale.

    An estimate of twice the expected Kullback-Leibler distance to the truth, up to a constant; inf where n <= k + 1.

    Reference: Hurvich and Tsai (1989), "Regression and time series model selection in small samples", Biometrika 76.
    """
    n, k = _sizes(fit)
    return -2 * fit.log_likelihood + 2 * k + 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else math.inf


def bic(fit: Fit) -> float:
    """BIC = -2 log L + k log n, k the parameters and the noise's scale (Schwarz 1978, Annals of Statistics 6)."""
    n, k = _sizes(fit)
    return -2 * fit.log_likelihood + k * math.log(n)


def comparable(fits: Sequence[Fit]) -> None:
    """Check that the likelihoods of several fits are of the same outcomes under the same noise.

    Raises:
      ValueError: no fits, other points, losses or spaces, a loss that is no likelihood, or one form twice.
    """
    if not fits:
        raise ValueError("There are no fits to compare.")
    first = fits[0]
    for fit in fits:
        if fit.space != first.space or fit.loss != first.loss:
            raise ValueError(
                f"{fit.form.name} was fitted with {fit.loss.name} loss in {fit.space} space and {first.form.name} with "
                f"{first.loss.name} in {first.space}: fit all forms in the same way to compare them."
            )
        if not np.array_equal(fit.points.y, first.points.y):
            raise ValueError(f"{fit.form.name} and {first.form.name} were fitted to different points.")
        if not math.isfinite(fit.log_likelihood):
            raise ValueError(f"The {fit.loss.name} loss has no likelihood; take huber, huber_likelihood or squared.")
    names = [fit.form.name for fit in fits]
    if len(set(names)) < len(names):
        raise ValueError(f"Each form may be compared once; got {', '.join(names)}.")


def _sizes(fit: Fit) -> tuple[int, int]:
    refuse_unless_minimum(fit, "Information criteria")
    weights = fit.points.weights
    n = fit.points.n if weights is None else int(np.count_nonzero(weights))
    return n, len(fit.form.parameters) + 1
