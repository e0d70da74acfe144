"""What the figures of loss landscapes are drawn from: plain arrays with names, whoever measured them.

Losses are in nats per token. Letters: X and Y points of a grid, T points of a line, K points of a path, S seeds of
lines or probes of spectra, G points of a spectrum, M nodes of its quadrature, E eigenvalues.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from adaptlab.report import files

__all__ = ["Lines", "Spectrum", "Surface", "load_spectrum", "load_surface", "save_picture"]


class Surface(NamedTuple):
    """The losses of several domains over one plane in weight space.

    Attributes:
      title: what plane it is.
      x_X, y_Y: the coordinates of the grid.
      loss: `{domain: loss_YX}`; nan where a loss is not finite.
      marks: `{label: (x, y)}`: models that lie in the plane.
      paths: `{label: xy_K2}`: trajectories, projected.
      inside: `{label: share}` of a path's squared distance from the base that lies in the plane, at its end, in [0, 1].
      x_label, y_label: what each axis is, with its unit, in words.
    """

    title: str
    x_X: np.ndarray
    y_Y: np.ndarray
    loss: Mapping[str, np.ndarray]
    marks: Mapping[str, tuple[float, float]]
    paths: Mapping[str, np.ndarray]
    inside: Mapping[str, float]
    x_label: str
    y_label: str


class Lines(NamedTuple):
    """The losses along straight lines in weight space, of runs that differ in their seed only.

    Attributes:
      label: between which models.
      t_T: where on the line, from 0 to 1.
      loss: `{domain: loss_ST}`.
    """

    label: str
    t_T: np.ndarray
    loss: Mapping[str, np.ndarray]


class Spectrum(NamedTuple):
    """The spectral density of a curvature matrix, as stochastic Lanczos quadrature estimates it.

    Attributes:
      label: of which model, on which text.
      parameters: the number of eigenvalues.
      value_G: where on the axis of eigenvalues, increasing.
      density_G: the density there, integrating to one.
      low_G, high_G: its interval over probes; nan with one probe.
      node_SM: the Ritz values of each probe.
      weight_SM: their quadrature weights, those of a probe summing to one.
      eigenvalue_E: the eigenvalues that were computed each by itself.
      bound_E: how far from an eigenvalue each is at most: the norm of its residual.
    """

    label: str
    parameters: int
    value_G: np.ndarray
    density_G: np.ndarray
    low_G: np.ndarray
    high_G: np.ndarray
    node_SM: np.ndarray
    weight_SM: np.ndarray
    eigenvalue_E: np.ndarray
    bound_E: np.ndarray


def save_picture(path: Path, picture: Surface | Spectrum) -> None:
    """Write what a figure is drawn from as JSON, whole or not at all; what is not finite becomes null."""
    files.save_json(path, picture)


def load_surface(path: Path) -> Surface:
    """Read a surface that `save_picture` wrote; null becomes nan."""
    node = json.loads(path.read_text())
    node |= {name: _array(node[name]) for name in ("x_X", "y_Y")}
    node |= {name: {key: _array(x) for key, x in node[name].items()} for name in ("loss", "paths")}
    node["marks"] = {label: (x, y) for label, (x, y) in node["marks"].items()}
    return Surface(**node)


def load_spectrum(path: Path) -> Spectrum:
    """Read a spectrum that `save_picture` wrote; null becomes nan."""
    node = json.loads(path.read_text())
    arrays = {name: _array(x) for name, x in node.items() if name not in ("label", "parameters")}
    return Spectrum(**(node | arrays))


def _array(values: object) -> np.ndarray:
    return np.array(values, np.float64)
