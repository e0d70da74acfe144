"""How a loss surface is coloured, cut off and read between its points: the same on paper and on the screen."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adaptlab.report.landscape.data import Surface

__all__ = ["Scale", "ceiling", "heights", "scale_of"]

_LEVELS = 13


class Scale(NamedTuple):
    """A scale of colours on which a quadratic bowl has evenly spaced rings: s = √(L - least).

    Attributes:
      least: the lowest loss.
      top: the largest s.
    """

    least: float
    top: float

    def of(self, loss_YX: np.ndarray) -> np.ndarray:
        """Losses on the scale; nan where they are not finite."""
        return np.sqrt(np.clip(np.where(np.isfinite(loss_YX), loss_YX, np.nan) - self.least, 0, None))

    def loss(self, s: np.ndarray) -> np.ndarray:
        """What losses stand at places on the scale."""
        return self.least + s**2

    @property
    def levels(self) -> np.ndarray:
        """Where the rings are."""
        return np.linspace(0, max(self.top, 1e-6), _LEVELS)


def scale_of(loss_YX: np.ndarray) -> Scale:
    """Return the scale that spans the finite losses of a surface.

    Raises:
      ValueError: there are none.
    """
    finite = loss_YX[np.isfinite(loss_YX)]
    if not len(finite):
        raise ValueError("A surface without a single finite loss cannot be drawn: take a smaller part of the plane.")
    return Scale(float(finite.min()), float(np.sqrt(finite.max() - finite.min())))


def ceiling(loss_YX: np.ndarray) -> float:
    """The height at which a surface in three dimensions is cut off: a twentieth of its finite losses lie above."""
    return float(np.quantile(loss_YX[np.isfinite(loss_YX)], 0.95))


def heights(surface: Surface, loss_YX: np.ndarray, xy_K2: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Return the surface's loss at points of the plane, bilinear between grid points; nan outside the grid.

        L(x, y) = Σ_ij w_i(x) w_j(y) L_ij,   w the linear weights of the two neighbours on each axis

    Args:
      surface: has the grid.
      loss_YX: the losses on it.
      xy_K2: the points.
    """
    xy_K2 = np.asarray(xy_K2, np.float64)
    i_K, u_K, in_x_K = _cell(surface.x_X, xy_K2[:, 0])
    j_K, v_K, in_y_K = _cell(surface.y_Y, xy_K2[:, 1])
    low_K = (1 - u_K) * loss_YX[j_K, i_K] + u_K * loss_YX[j_K, i_K + 1]
    high_K = (1 - u_K) * loss_YX[j_K + 1, i_K] + u_K * loss_YX[j_K + 1, i_K + 1]
    return np.where(in_x_K & in_y_K, (1 - v_K) * low_K + v_K * high_K, np.nan)


def _cell(axis_X: np.ndarray, at_K: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The cell of each coordinate, where in it, and whether it is in the grid (up to rounding)."""
    slack = 1e-9 * (axis_X[-1] - axis_X[0])
    inside_K = (at_K >= axis_X[0] - slack) & (at_K <= axis_X[-1] + slack)
    i_K = np.clip(np.searchsorted(axis_X, at_K, side="right") - 1, 0, len(axis_X) - 2)
    return i_K, (at_K - axis_X[i_K]) / (axis_X[i_K + 1] - axis_X[i_K]), inside_K
