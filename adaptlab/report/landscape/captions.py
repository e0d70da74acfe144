"""The words under the figures of a study of loss landscapes."""

from collections.abc import Mapping
from typing import Any

from adaptlab.report.captions import Caption
from adaptlab.report.landscape.data import Surface
from adaptlab.report.words import listed, plain

__all__ = ["landscape_caption"]


def landscape_caption(name: str, summary: Mapping[str, Any], surfaces: Mapping[str, Surface]) -> Caption:
    """Return the caption of a figure of `page.draw_landscape`, by its name."""
    kind, _, plane = name.partition("_of_")
    if kind in ("contours", "surface"):
        return _surface(kind, surfaces[plane])
    band = f"Thin: seeds; thick: their mean; band: {summary['confidence']:.0%} Student interval over seeds."
    return {
        "lines": Caption(
            "From the base to the tuned model",
            "The held-out loss on the straight line from the base (0) to the tuned model (1), above the chord between "
            "its ends, each method at its own learning rate. The highest point is the barrier; a line that stays at or "
            f"below zero has none. {band}",
        ),
        "twins": Caption(
            "Between two seeds",
            "The held-out loss on the straight line between two models that differ in their seed only, above the chord "
            f"between its ends. {band} Here a seed is a pair, and no model is in two pairs.",
        ),
        "barriers": Caption(
            "Barriers by learning rate",
            "The highest barrier of any domain on the line from the base to the tuned model. Points: runs; line: their "
            f"mean. Dashed: {summary['tolerance']:g} nats per token, up to which a model counts as in the base's "
            "basin. The axis is linear below that, and logarithmic above.",
        ),
        "directions": Caption(
            "Sharpness along updates",
            "The curvature of the base's loss on upstream text along each run's update (filled), and along random "
            "directions that have the update's norm in every filter (open), per unit of distance. Bars: medians.",
        ),
        "forecasts": Caption(
            "Forecast and forgetting",
            "One point for each run: the second-order forecast of its forgetting, g·Δ + ΔᵀHΔ/2 with gradient and "
            "Hessian at the base, and what it forgot at the end of training. On the dashed line the loss is quadratic "
            "as far as the update goes. Both axes are linear within 0.01, and logarithmic beyond.",
        ),
        "spectra": Caption(
            "Spectra of the Hessian",
            "The density of the eigenvalues by stochastic Lanczos quadrature, smoothed by a hundredth of their range; "
            "band: 95% Student interval over probes. Ticks: the nodes (Ritz values) of the probes, darker the more "
            "they weigh. Triangles: the largest eigenvalues, each computed by itself, with its bound of the error. The "
            "axis is linear up to about a hundredth of the largest, and logarithmic beyond.",
        ),
    }[name]


def _surface(kind: str, surface: Surface) -> Caption:
    where = f"Axes: {plain(surface.x_label)}; {plain(surface.y_label)}."
    inside = [f"{share:.0%} of the squared distance of {plain(n)}" for n, share in surface.inside.items()]
    seen = f" The plane sees {listed(inside)} from the base at its end; trajectories are projected." if inside else ""
    if kind == "contours":
        rings = "Rings are evenly spaced in the square root of the loss above its least, so that a bowl has even rings"
        return Caption(f"{plain(surface.title)}: contours", f"Held-out loss by domain. {where} {rings}.{seen}")
    cut = "A twentieth of the points lies above what is shown, and is cut off"
    turn = "On a screen it can be turned, hovered over and switched between domains"
    return Caption(f"{plain(surface.title)}: surface", f"Held-out loss by domain. {where} {cut}. {turn}.{seen}")
