import numpy as np
import pyarrow as pa

from adaptlab.report.curves import make_curves
from adaptlab.report.draw import draw
from adaptlab.report.html import render_html
from adaptlab.report.probe_figures import NAME, draw_probes, probe_captions


def with_probes(make_study):
    curves, _, summary = make_study(rates=(1e-3,), seeds=(0, 1))
    rows = [
        (run, step, metric, value + (seed["seed"] if metric == "path/turn/all" else 0.0))
        for run, seed in summary["runs"].items()
        for step in (0, 5, 10)
        for metric, value in {
            "path/turn/all": 0.5,
            "hidden/news/cka/0": 1.0,
            "hidden/news/cka/1": 0.5,
            "hidden/code/cka/0": 0.0,
            "path/turn/layers/0": 9.0,
        }.items()
    ]
    return pa.concat_tables([curves, make_curves(rows)]), summary


def test_there_is_a_panel_for_each_thing_measured_and_a_line_is_the_mean_over_layers_and_domains(make_study):
    curves, summary = with_probes(make_study)
    figure = draw_probes(curves, summary)[NAME]
    assert [axes.get_title(loc="left") for axes in figure.axes] == [
        "Cosine of successive steps",
        "Hidden states: similarity",
    ]
    turn, similarity = figure.axes
    thick = [line for line in turn.lines if line.get_linewidth() > 1.5 and len(line.get_xdata())]
    assert len(thick) == len(summary["methods"])
    for line in thick:
        np.testing.assert_allclose(line.get_ydata(), 1.0)  # the mean over seeds 0 and 1 of 0.5 + seed
    np.testing.assert_allclose(similarity.lines[0].get_ydata(), 0.5)


def test_the_figure_is_on_the_page_with_its_caption_and_absent_where_nothing_was_measured(make_study):
    curves, summary = with_probes(make_study)
    assert f'<figure id="{NAME}">' in render_html(summary, draw_probes(curves, summary), {}, "")
    assert "band: 95% Student interval" in probe_captions(summary)[NAME].text
    assert NAME in draw(curves, summary)
    plain, _, summary = make_study(rates=(1e-3,), seeds=(0,))
    assert draw_probes(plain, summary) == {}
