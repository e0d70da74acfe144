"""The spectrum of an operator as a density, by stochastic Lanczos quadrature.

    1/P tr f(A) = E qᵀ f(A) q ≈ 1/S Σ_s Σ_m weight_sm f(node_sm)

over random q of length 1 (Ubaru, Chen, Saad 2017, "Fast estimation of tr(f(A)) via stochastic Lanczos quadrature";
arXiv:1901.10159 for neural networks).

Letters: S probes, M nodes of each, P parameters, G points of a grid.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from adaptlab import tree
from adaptlab.measure.curvature.lanczos import quadrature
from adaptlab.measure.curvature.operators import Operator, at_once, pack, packable, packed
from adaptlab.measure.curvature.traces import check_probes
from adaptlab.measure.curvature.vectors import Draw, draw
from adaptlab.stats import Estimate, estimate

__all__ = ["Density", "density_samples", "mean_of", "negative_share", "smoothed", "spectral_density"]


class Density(NamedTuple):
    """The spectrum as each probe sees it.

    Attributes:
      nodes: `[S, M]`, in increasing order.
      weights: `[S, M]`, those of a probe sum to 1.
      parameters: P, the number of eigenvalues.
    """

    nodes: np.ndarray
    weights: np.ndarray
    parameters: int


def spectral_density(
    operator: Operator,
    *,
    key: jax.Array,
    probes: int = 10,
    steps: int = 64,
    how: Draw = "normal",
    together: int = 1,
) -> Density:
    """Return the nodes and weights of stochastic Lanczos quadrature; see `smoothed`, `mean_of` and `negative_share`.

    Args:
      operator: A.
      key: of the probes.
      probes: S, at least 2.
      steps: M, products a probe. Moments of the density up to 2M - 1 are exact but for the probes; details finer than
        about a 2M-th of the spectrum are not seen.
      how: the distribution of the probes, before they get length 1.
      together: probes at a time: memory is that of so many bases.

    Raises:
      ValueError: fewer than two probes or steps, or an unknown distribution.
    """
    check_probes(probes, how, together)
    if steps < 2:
        raise ValueError(f"steps={steps} must be at least 2.")
    total = tree.count(operator.space)
    nodes, weights = density_samples(operator, key, probes, min(steps, total), how, together, packable(operator))
    return Density(np.asarray(nodes, np.float64), np.asarray(weights, np.float64), total)


@functools.partial(jax.jit, static_argnums=(2, 3, 4, 5, 6))
def density_samples(
    operator: Operator,
    key: jax.Array,
    probes: int,
    steps: int,
    how: Draw = "normal",
    together: int = 1,
    whole: bool = False,
) -> tuple[jax.Array, jax.Array]:
    """Return nodes and weights, `[S, M]` each, with vectors in one array each or not; see `spectral_density`."""
    product = (packed(operator) if whole else operator).linearise()

    def one(key: jax.Array) -> Any:
        probe = draw(key, operator.space, how)
        return quadrature(product, pack(probe) if whole else probe, steps)

    found = at_once(one, jax.random.split(key, probes), together)
    return found.nodes, found.weights


def mean_of(density: Density, f: Callable[[np.ndarray], np.ndarray]) -> Estimate:
    """1/P tr f(A), with its standard error over probes.

    Args:
      density: of A.
      f: a function of eigenvalues, smooth on the scale of the nodes; NumPy, elementwise.

    >>> d = Density(np.array([[0.0, 2.0], [0.0, 2.0]]), np.array([[0.5, 0.5], [0.25, 0.75]]), 8)
    >>> mean_of(d, lambda x: x).mean
    1.25
    """
    return estimate(np.sum(density.weights * f(density.nodes), axis=1))


def smoothed(density: Density, grid: np.ndarray, width: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the density convolved with a normal one, `[G]`, and its standard error over probes, `[G]`.

        1/P Σ_i N(t; λ_i, width²)  (arXiv:1901.10159, eq. 2)

    Args:
      density: of A.
      grid: t, `[G]`.
      width: σ; by default a hundredth of the range of the nodes.
    """
    if width is None:
        width = float(np.ptp(density.nodes)) / 100
    if width <= 0:
        raise ValueError(f"width={width} must be positive; all nodes may be the same, then give one.")
    t = (np.asarray(grid, np.float64)[:, None, None] - density.nodes) / width
    bells = np.exp(-(t**2) / 2) / (width * np.sqrt(2 * np.pi))
    each = np.sum(density.weights * bells, axis=2)
    return each.mean(axis=1), each.std(axis=1, ddof=1) / np.sqrt(each.shape[1])


def negative_share(density: Density, below: float = 0.0) -> Estimate:
    """The share of eigenvalues under -`below`: the index of a saddle over P (arXiv:1406.2572, sec. 3).

    Most eigenvalues of a Hessian are near zero, of either sign, where rounding and a Lanczos method tell no difference:
    give a threshold that means something, e.g. a thousandth of the largest.

    Args:
      density: of A.
      below: the threshold, at least 0.
    """
    if below < 0:
        raise ValueError(f"below={below} must be at least 0: it is how negative an eigenvalue must be to count.")
    return mean_of(density, lambda x: (x < -below).astype(np.float64))
