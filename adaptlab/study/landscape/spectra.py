"""Spectra of a study: the Hessian of the held-out loss at the base and at its tuned models.

A finished spectrum is kept in the study's folder, so that an interrupted study goes on where it was.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adaptlab import adapt, models, rng, stats
from adaptlab.measure.curvature import hessian, stack_batches, top_eigenpairs
from adaptlab.measure.curvature.density import Density, smoothed, spectral_density
from adaptlab.report.landscape.data import Spectrum, load_spectrum, save_picture
from adaptlab.study.lab import Lab
from adaptlab.study.landscape.labs import FinalLandscape, dense_base, even_domains, open_tuned
from adaptlab.study.members import Member
from adaptlab.train import make_objective

__all__ = ["spectra"]

log = logging.getLogger(__name__)

_POINTS = 400  # of a density's axis: four to each width of its smoothing


def spectra(lab: Lab, shown: Mapping[str, Member], folder: Path, wanted: FinalLandscape) -> list[Spectrum]:
    """Estimate the spectral density and the largest eigenvalues of Hessians in the space of all weights.

    They are of the base, on the target's held-out text and on upstream text (the mean over its domains), and of the
    tuned models on upstream text.

    Args:
      lab: what the runs shared.
      shown: the tuned models by name.
      folder: the study's.
      wanted: see `FinalLandscape`.
    """
    found: list[Spectrum] = []
    objective = make_objective(models.language_modelling(lab.pretrained.model), adapt.full())  # one program for all
    for name, label, params, domains in _wanted(lab, shown, folder):
        path = folder / "spectra" / f"{lab.target}_{name}.json"
        if not path.exists():
            batches = stack_batches(even_domains(domains, wanted.rows))
            save_picture(path, _spectrum(label, hessian(objective, params(), {}, batches), wanted))
        found.append(load_spectrum(path))
        log.info("spectrum of %s: largest eigenvalue %.4g", label, found[-1].eigenvalue_E[0])
    return found


def _wanted(lab: Lab, shown: Mapping[str, Member], folder: Path) -> Iterator[tuple[str, str, Any, dict[str, Any]]]:
    """What there are spectra of: a file name, a label, a function that loads the model, and the text."""
    target = {lab.target: lab.held_out[lab.target]}
    upstream = {domain: part for domain, part in lab.held_out.items() if domain != lab.target}
    tuned = open_tuned(lab, folder)
    yield "base_upstream", "base, on upstream text", lambda: dense_base(lab), upstream
    yield "base_target", "base, on the target's text", lambda: dense_base(lab), target
    for name, member in shown.items():
        yield f"{name}_upstream", f"{name}, on upstream text", lambda member=member: tuned(member), upstream


def _spectrum(label: str, operator: Any, wanted: FinalLandscape) -> Spectrum:
    key = rng.key_for(0, "landscape/spectrum")
    pairs = top_eigenpairs(operator, wanted.eigenpairs, key=key, tolerance=wanted.tolerance)
    density = spectral_density(operator, key=key, probes=wanted.probes, steps=wanted.nodes)
    low, high = float(density.nodes.min()), float(max(density.nodes.max(), np.max(pairs.values)))
    width = (high - low) / 100
    grid = np.linspace(low - 4 * width, high + 4 * width, _POINTS)
    mean_G, error_G = smoothed(density, grid, width)
    low_G, high_G = _interval(mean_G, error_G, density)
    return Spectrum(
        label=label,
        parameters=density.parameters,
        value_G=grid,
        density_G=mean_G,
        low_G=low_G,
        high_G=high_G,
        node_SM=density.nodes,
        weight_SM=density.weights,
        eigenvalue_E=np.asarray(pairs.values, np.float64),
        bound_E=np.asarray(pairs.residuals, np.float64),
    )


def _interval(mean_G: np.ndarray, error_G: np.ndarray, density: Density) -> tuple[np.ndarray, np.ndarray]:
    """Student's 95% interval over probes, point by point."""
    probes = len(density.nodes)
    found = [
        stats.Estimate(float(mean), float(error), probes - 1, probes, math.nan).interval()
        for mean, error in zip(mean_G, error_G, strict=True)
    ]
    return np.array([i.low for i in found]), np.array([i.high for i in found])
