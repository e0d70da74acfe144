import math

import matplotlib
import pytest

from adaptlab.report.captions import captions
from adaptlab.report.draw import draw
from adaptlab.report.figures import render, save_figure
from adaptlab.report.summary import summarise
from tests.report.planted import TARGET, Arm, plant
from tests.report.planted import UPSTREAM as PLANTED_UPSTREAM


@pytest.fixture(scope="module")
def study(make_study):
    curves, _, summary = make_study()
    return curves, summary


def test_a_study_of_several_rates_has_figures_of_them_each_with_its_caption(study):
    assert list(draw(*study)) == [
        *["forgetting_curve", "gain_curve", "trade_off"],
        *["learning_rates", "heat_maps", "usable_zones"],
    ]
    assert set(captions(study[1])) == set(draw(*study))


def test_one_rate_for_each_method_leaves_no_rates_to_compare(make_study):
    curves, _, summary = make_study(rates=(1e-3,), seeds=(0,))
    assert list(draw(curves, summary)) == ["forgetting_curve", "gain_curve", "trade_off"]
    assert "One seed" in captions(summary)["trade_off"].text
    assert "band" not in captions(summary)["trade_off"].text


def test_axes_name_their_quantity_and_unit(study):
    figures = draw(*study)
    assert figures["forgetting_curve"].get_supylabel() == "Upstream loss (nats per token)"
    assert figures["trade_off"].get_supxlabel() == "Target gain (nats per token)"
    for figure in (figures["gain_curve"], figures["learning_rates"]):
        for axes in figure.axes:
            assert axes.get_xlabel()
            assert "nats per token" in axes.get_ylabel()


def test_each_upstream_domain_and_the_mean_have_a_panel(study):
    titles = [axes.get_title(loc="left") for axes in draw(*study)["forgetting_curve"].axes]
    assert titles == [*(d.replace("_", " ") for d in study[1]["upstream"]), "Mean of 3 domains"]


def test_methods_differ_in_colour_and_in_marker(make_study):
    curves, _, summary = make_study(methods=tuple("abcdefg"), rates=(1e-3,), seeds=(0,))
    (legend,) = draw(curves, summary)["gain_curve"].legends
    handles = legend.get_lines()
    assert len({h.get_color() for h in handles}) == len({h.get_marker() for h in handles}) == 7


def test_the_mean_line_runs_through_the_mean_over_seeds(study):
    curves, summary = study
    axes = draw(curves, summary)["gain_curve"].axes[0]
    ends = [line.get_ydata()[-1] for line in axes.lines if line.get_linewidth() > 1.5 and len(line.get_ydata())]
    german = [row["final"]["german_parliament"]["loss"]["mean"] for row in summary["methods"].values()]
    assert ends == pytest.approx(german)


@pytest.fixture(scope="module")
def planted():
    arms = {
        "full": Arm(lost=((1e-3, 0), (1e-3, 1)), fall=1.2, noise=0.0),
        "lora": Arm(peak=1e-3, rates=(1e-4, 1e-3, 1e-2), lost=tuple((1e-2, seed) for seed in range(5)), noise=0.0),
    }
    curves, runs = plant(arms)
    return curves, summarise(curves, runs, TARGET, PLANTED_UPSTREAM)


def test_heat_maps_write_each_mean_and_count_what_diverged(planted):
    upper, lower, *_ = draw(*planted)["heat_maps"].axes
    cells = {tuple(t.get_position()): t.get_text() for t in upper.texts}  # (column, row)
    assert [t.get_text() for t in lower.get_xticklabels()] == ["1e-05", "3e-05", "0.0001", "0.0003", "0.001", "0.01"]
    assert [t.get_text() for t in upper.get_yticklabels()] == ["full", "lora"]
    assert len(cells) == 8  # what was not run stays empty
    assert float(cells[2, 0]) == pytest.approx(_mean_gain(planted, "full", 1e-4), abs=0.005)
    assert cells[4, 0].endswith(" \N{MULTIPLICATION SIGN}2")
    assert cells[5, 1] == "\N{MULTIPLICATION SIGN}"


def _mean_gain(study, method, rate):
    gains = [r["final_gain"] for r in study[1]["runs"].values() if (r["method"], r["lr"]) == (method, rate)]
    return sum(gains) / len(gains)


def test_a_ruined_cell_does_not_bleach_the_others():
    curves, runs = plant({"full": Arm(noise=0.0), "ruined": Arm(forgets=100.0, rates=(1e-4,), noise=0.0)})
    figure = draw(curves, summarise(curves, runs, TARGET, PLANTED_UPSTREAM))["heat_maps"]
    assert figure.axes[1].collections[0].get_clim()[1] < 10  # the ruined cell is at about 100


def test_the_usable_zone_is_shaded_where_the_gain_is_high_enough(planted):
    full, lora = draw(*planted)["usable_zones"].axes
    zone = planted[1]["zones"]["full"]
    edges = [
        line.get_xdata()[0] for line in full.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
    ]
    assert edges == pytest.approx([zone["low"], zone["high"]])
    # From 1e-4 the chords of the parabola fall to 1 - (d / 1.2)^2 at d = log10(10 / 3) below and at log10(3) above.
    below, above = math.log10(10 / 3), math.log10(3)
    expected = 0.1 / (below / 1.2) ** 2 * below + 0.1 / (above / 1.2) ** 2 * above
    assert zone["width"]["mean"] == pytest.approx(expected, rel=1e-6)
    assert full.get_title(loc="left") == f"full: {zone['width']['mean']:.2f} decades"
    assert planted[1]["zones"]["lora"]["censored"] == 0
    assert "≥" not in lora.get_title(loc="left")


def test_an_open_zone_says_that_it_is_a_bound():
    curves, runs = plant({"wide": Arm(fall=10.0)})
    summary = summarise(curves, runs, TARGET, PLANTED_UPSTREAM)
    (axes,) = draw(curves, summary)["usable_zones"].axes
    assert axes.get_title(loc="left") == "wide: ≥ 2.00 decades"
    assert summary["zones"]["wide"]["censored"] == 5
    assert "lower bound" in captions(summary)["usable_zones"].text


@pytest.mark.parametrize("options", [{"diverge": True}, {"seeds": (0,)}, {"methods": ("full",), "seeds": (0, 1)}])
def test_incomplete_studies_are_drawn_without_a_warning(make_study, options):
    curves, _, summary = make_study(**options)
    for figure in draw(curves, summary).values():
        assert render(figure, "svg").startswith(b"<?xml")


def test_a_domain_alone_is_not_averaged(make_study):
    curves, _, summary = make_study(upstream=["english_news"])
    figures = draw(curves, summary)
    assert len(figures["forgetting_curve"].axes) == len(figures["trade_off"].axes) == 1


def test_figures_are_the_same_bits_each_time_and_leave_the_style_alone(study, tmp_path):
    before = dict(matplotlib.rcParams)
    for folder in ("1", "2"):
        save_figure(tmp_path / folder / "trade_off", draw(*study)["trade_off"])
    for end in ("png", "svg"):
        first, second = ((tmp_path / folder / f"trade_off.{end}").read_bytes() for folder in "12")
        assert first == second
        assert b"date" not in first.lower()
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("methods", "labels"), [("ab", 4), ("abcde", 0)])
def test_points_are_labelled_with_their_rate_only_where_there_is_room_and_the_caption_knows(
    make_study, methods, labels
):
    curves, _, summary = make_study(methods=tuple(methods), seeds=(0,))
    right = draw(curves, summary)["learning_rates"].axes[1]
    assert len(right.texts) == labels
    assert ("number at a point" in captions(summary)["learning_rates"].text) == bool(labels)
