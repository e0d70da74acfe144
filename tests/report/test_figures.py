import matplotlib
import pytest

from adaptlab.report.captions import captions
from adaptlab.report.figures import draw, render, save_figure


@pytest.fixture(scope="module")
def study(make_study):
    curves, _, summary = make_study()
    return curves, summary


def test_a_study_of_several_rates_has_four_figures_each_with_its_caption(study):
    assert list(draw(*study)) == ["forgetting_curve", "gain_curve", "trade_off", "learning_rates"]
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
