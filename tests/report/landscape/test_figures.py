import numpy as np
import pytest

from adaptlab.report.landscape.barriers import draw_barriers, draw_lines, excess
from adaptlab.report.landscape.data import Lines
from adaptlab.report.landscape.figures import draw_contours, draw_surface
from adaptlab.report.landscape.interactive import interactive_lines, interactive_surface
from adaptlab.report.landscape.scale import ceiling, heights, scale_of
from adaptlab.report.landscape.spectra import draw_directions, draw_forecasts, draw_spectra
from tests.report.landscape.planted import bowl, spectrum


def test_excess_is_zero_on_a_chord_and_the_hill_above_it():
    t = np.linspace(0, 1, 5)
    hill = 4 * t * (1 - t)
    losses = np.stack([3 - 2 * t, 3 - 2 * t + hill])
    np.testing.assert_allclose(excess(losses, t), np.stack([0 * t, hill]), atol=1e-12)


def test_rings_of_a_bowl_are_evenly_spaced():
    radius = np.linspace(0, 2, 9)
    scale = scale_of(1.5 + radius**2)
    np.testing.assert_allclose(scale.of(1.5 + radius**2), radius)
    np.testing.assert_allclose(scale.loss(scale.levels), 1.5 + np.linspace(0, 2, 13) ** 2)


def test_a_surface_of_nothing_finite_is_an_error():
    with pytest.raises(ValueError, match="smaller part"):
        scale_of(np.full((2, 2), np.inf))


def test_heights_are_exact_at_grid_points_bilinear_between_and_missing_outside():
    surface = bowl()
    loss = surface.loss["german"]
    at = [[surface.x_X[2], surface.y_Y[3]], [surface.x_X[-1], surface.y_Y[-1]], [5.0, 0.0]]
    np.testing.assert_allclose(heights(surface, loss, at), [loss[3, 2], loss[-1, -1], np.nan])
    middle = [[(surface.x_X[0] + surface.x_X[1]) / 2, (surface.y_Y[0] + surface.y_Y[1]) / 2]]
    assert heights(surface, loss, middle)[0] == pytest.approx(loss[:2, :2].mean())


def test_contours_have_a_panel_for_each_domain_their_models_and_their_units():
    figure = draw_contours(bowl())
    panels = [axes for axes in figure.axes if axes.get_title(loc="left")]
    assert [axes.get_title(loc="left") for axes in panels] == ["german", "news"]
    assert [text.get_text() for text in panels[0].texts] == ["base", "far full", "far lora"]
    assert "1 = the distance between them" in figure.get_supxlabel()
    bars = [axes.get_ylabel() for axes in figure.axes if axes not in panels]
    assert bars == ["Loss (nats per token)"] * 2


def test_a_surface_is_cut_where_it_explodes():
    losses = bowl().loss["news"]
    figure = draw_surface(bowl())
    heights_shown = figure.axes[1].get_zlim()
    assert heights_shown[1] <= 1.1 * ceiling(losses) < np.nanmax(losses)


def test_colours_keep_their_order_in_grey():
    import matplotlib

    grey = matplotlib.colormaps["viridis"](np.linspace(0, 1, 50))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(grey) > 0).all()


def test_the_band_of_a_line_is_over_seeds_and_one_seed_has_none():
    t, rng = np.linspace(0, 1, 5), np.random.default_rng(0)
    loss = {"target": 3 + 0.1 * rng.standard_normal((4, 1)) * t * (1 - t) + 0 * t}
    many = draw_lines([Lines("full", t, loss)], "t", 0.95).axes[0]
    one = draw_lines([Lines("full", t, {"target": loss["target"][:1]})], "t", 0.95).axes[0]
    assert len(many.lines) - len(one.lines) == 4  # the seeds themselves, thin
    page = interactive_lines([Lines("full", t, loss)], "live", "t", 0.95)
    assert page.count('"hoverinfo":"skip"') == 1  # the band
    assert "n = 4" in page


def test_every_barrier_is_a_point():
    axes = draw_barriers({"full": {1e-3: [0.1, 0.2], 1e-2: [0.5]}}, 0.05, "Barrier").axes[0]
    points = next(line for line in axes.lines if line.get_linestyle() == "None")
    assert sorted(np.asarray(points.get_ydata()).tolist()) == [0.1, 0.2, 0.5]


def test_spectra_show_their_nodes_and_eigenvalues():
    figure = draw_spectra([spectrum(), spectrum("full")], "Eigenvalue")
    assert [axes.get_yscale() for axes in figure.axes] == ["log"] * 2
    marks = [c for c in figure.axes[0].collections if len(c.get_paths()) == spectrum().node_SM.size]
    assert marks


def test_points_of_runs_are_drawn_by_method():
    rows = {"full": {"update": [3.0, 5.0], "random": [0.1, -0.1]}}
    assert draw_directions(rows, "Curvature").axes[0].get_xticklabels()[0].get_text() == "full"
    axes = draw_forecasts({"full": [(0.1, 0.2), (1.0, np.nan)]}).axes[0]
    assert axes.get_xlim()[1] < 1  # what is not finite does not stretch the axes


def test_a_turning_surface_has_a_menu_of_domains_that_shows_one():
    page = interactive_surface(bowl(), "one")
    assert page.count('"surfacecolor"') == 2
    assert page.count('"method":"restyle"') == 2
    assert 'id="one"' in page
