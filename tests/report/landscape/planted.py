"""A made-up study of loss landscapes: quadratic bowls, barriers and curvatures that are known."""

import numpy as np

from adaptlab.report.curves import make_curves
from adaptlab.report.landscape.data import Lines, Spectrum, Surface
from adaptlab.report.landscape.summary import TARGET, Landscape, lines_by_seed, summarise_landscape, with_lines

UPSTREAM = ["news", "code"]
SEEDS = (0, 1, 2, 3, 4)
METHODS = {"far_full": 0.02, "far_lora": 0.3}  # and the height of its barrier at the rate 1e-3


def bowl() -> Surface:
    """L = 2 + x² + 4y² of the target, and another of upstream text that explodes in a corner."""
    x, y = np.linspace(-1, 1, 9), np.linspace(-0.5, 1.5, 11)
    first = 2 + x[None, :] ** 2 + 4 * y[:, None] ** 2
    second = np.exp(3 * (x[None, :] + y[:, None]))
    second[-1, -1] = np.nan
    way = np.stack([np.linspace(0, 1, 5), np.linspace(0, 0.5, 5)], axis=1)
    return Surface(
        title="The plane through base, full, lora",
        x_X=x,
        y_Y=y,
        loss={"german": first, "news": second},
        marks={"base": (0.0, 0.0), "far_full": (1.0, 0.0), "far_lora": (0.3, 1.0)},
        paths={"far_full": way},
        inside={"far_full": 0.9},
        x_label="from base towards far_full (1 = the distance between them)",
        y_label="across, towards far_lora (the same unit)",
    )


def spectrum(label: str = "base, on upstream text") -> Spectrum:
    grid = np.linspace(-2, 11, 200)
    density = np.exp(-((grid / 0.3) ** 2)) + 1e-3 * np.exp(-(((grid - 10) / 0.3) ** 2))
    nodes = np.array([[-1.0, 0.0, 10.0], [-1.0, 0.1, 10.0]])
    weights = np.array([[0.1, 0.8, 0.1], [0.1, 0.7, 0.2]])
    return Spectrum(
        label,
        1000,
        grid,
        density,
        0.5 * density,
        2 * density,
        nodes,
        weights,
        np.array([10.0, 4.0]),
        np.array([0.1, 0]),
    )


def runs_and_curves(lost: str | None = None):
    """Return (runs, curves, lines, twins); forgetting is 1.1 times its forecast, but for a little noise by seed."""
    rows, runs, lines, twins = [], {}, {}, {}
    for method, height in METHODS.items():
        for rate in (1e-4, 1e-3):
            for seed in SEEDS:
                run, noise = f"{method}/lr_{rate:g}/seed_{seed}", np.random.default_rng([seed, round(1e5 * rate)])
                about = {"method": method, "arm": method[4:], "place": "far", "target": "german"}
                diverged = 5 if run == lost else None
                runs[run] = {**about, "lr": rate, "seed": seed, "diverged_at": diverged, "delta_digest": "0" * 64}
                forecast = 1e3 * rate * (1 + 0.1 * noise.standard_normal())
                for domain, end in ((TARGET, -1.0), ("news", 1.1 * forecast), ("code", 1.1 * forecast)):
                    rows += [(run, s, f"held_out/{domain}/loss", 3.0 + end * s / 10) for s in (0, 5, 10)]
                lines[run] = _line(height * rate / 1e-3 * (1 + 0.05 * noise.standard_normal()), forecast)
                if rate == 1e-3:
                    twins[run] = {**_line(0.01, 0.0), "numbers": _twin(0.01 + 1e-3 * seed)}
    if lost:
        lines[lost] = {"t": [], "loss": {}, "numbers": {}}
    return runs, make_curves(rows), lines, twins


def _line(height: float, forecast: float):
    t = np.linspace(0, 1, 5)
    hill = height * 4 * t * (1 - t)  # its chord excess is the hill itself
    loss = {"german": 3 - t + hill, "news": 3 + forecast * t + hill, "code": 2 + hill / 2}
    numbers = {
        **{"distance": 1.0 + forecast, "relative_distance": 0.1, "hump": 0.0},
        **{
            "barrier_target": height / 2,
            "barrier_upstream": height,
            "rise_target": height / 2,
            "rise_upstream": height,
            "forecast": forecast,
            "random_change": 0.01,
        },
        **{"curvature_update": 10.0 + height, "curvature_random": 0.1, "curvature_excess": 9.7, "slope": 0.0},
    }
    return {"t": t.tolist(), "loss": {name: x.tolist() for name, x in loss.items()}, "numbers": numbers}


def _twin(height: float):
    barriers = {f"twin_{name}_{of}": height for name in ("barrier", "rise") for of in ("target", "upstream")}
    return barriers | {"twin_hump": 0.0, "twin_distance": 2.0}


def landscape(lost: str | None = None) -> tuple[Landscape, dict, object]:
    """Return the landscape of the study, its runs and its curves."""
    runs, curves, lines, twins = runs_and_curves(lost)
    runs = with_lines(runs, lines, twins)
    spectra = [spectrum(), spectrum("far_full, on upstream text")]
    summary = summarise_landscape(curves, runs, UPSTREAM, spectra, tolerance=0.05)
    own: list[Lines] = lines_by_seed(lines, runs, dict.fromkeys(METHODS, 1e-3))
    found = Landscape(summary, own, lines_by_seed(twins, runs), {"models": bowl()}, spectra)
    return found, runs, curves
