import numpy as np
import pytest

from adaptlab.report.figures import render
from adaptlab.report.scaling.figures import Band, Law, draw_scaling


def law(**changes):
    """A known law of N and D on a grid of points, the last three held out."""
    n, d = (one.ravel() for one in np.meshgrid(np.geomspace(1e6, 1e8, 4), np.geomspace(1e8, 1e10, 4)))

    def band(x):
        value = 1.8 + 400 / x["N"] ** 0.34 + 2000 / x["D"] ** 0.36
        return Band(value, 0.98 * value, 1.02 * value)

    held = np.arange(16) > 12
    profiles = {"E": (np.linspace(1.6, 2.0, 9), 100 * np.linspace(-0.2, 0.2, 9) ** 2)}
    given = Law(
        *["chinchilla", "loss", {"N": n, "D": d}, band({"N": n, "D": d}).value, held, band],
        *[{"N": "N", "D": "D = C/(6*N)"}, profiles, {"E": 1.8}, 3.84, True],
    )
    return given._replace(**changes)


def test_a_law_of_parameters_and_tokens_has_its_points_residuals_profiles_and_lines_of_equal_compute():
    figures = draw_scaling(law())
    assert list(figures) == ["law", "residuals", "profiles", "isoflop"]
    assert [axes.get_title("left") for axes in figures["law"].axes] == ["N", "D = C/(6*N)"]
    (axes,) = figures["isoflop"].axes
    optima = [line for line in axes.lines if line.get_markersize() == 7 and len(line.get_xdata()) == 1]
    sizes = [float(line.get_xdata()[0]) for line in optima]
    assert len(sizes) == 5
    assert sizes == sorted(sizes)  # more compute, a larger model
    assert all(render(figure, "png") == render(figure, "png") for figure in figures.values())


def test_a_law_of_one_input_without_profiles_has_two_figures():
    one = law(x={"x": np.geomspace(1, 1e3, 16)}, names={"x": "tokens"}, profiles={})
    one = one._replace(band=lambda x: Band(*(f * (1 + x["x"] ** -0.3) for f in (1.0, 0.9, 1.1))))
    assert list(draw_scaling(one)) == ["law", "residuals"]


@pytest.mark.parametrize("log", [True, False])
def test_residuals_are_relative_in_log_space(log):
    figure = draw_scaling(law(log=log))["residuals"]
    assert ("%" in figure.get_supylabel()) == log
    marks = [line for axes in figure.axes[:1] for line in axes.lines if line.get_marker() in "os"]
    np.testing.assert_allclose(np.concatenate([line.get_ydata() for line in marks[:2]]), 0, atol=1e-12)
