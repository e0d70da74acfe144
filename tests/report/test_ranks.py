"""What depends on the rank, where it is planted."""

import math

import numpy as np
import pytest

from adaptlab.report.draw import draw
from adaptlab.report.html import _embed
from adaptlab.report.ranks import by_rank, intrinsic_dimension
from adaptlab.report.summary import summarise
from adaptlab.report.update_captions import update_captions
from adaptlab.report.update_figures import draw_updates
from adaptlab.report.updates import add_final, final_means, mean_over_matrices, split_updates
from tests.report.planted import TARGET, UPSTREAM, Arm, plant

HIGH = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
ARMS = {
    "full": Arm(forgets=0.4),
    "lora_r1": Arm(forgets=0.1, peak=1e-3, rates=HIGH),
    "lora_r4": Arm(forgets=0.2, peak=1e-3, rates=HIGH),
}
ABOUT = {"full": ("full", None, 1000), "lora_r1": ("lora", 1, 10), "lora_r4": ("lora", 4, 40)}


def described(runs):
    keys = ("family", "rank", "trainable_parameters")
    return {name: run | dict(zip(keys, ABOUT[run["method"]], strict=True)) for name, run in runs.items()}


@pytest.fixture(scope="module")
def study():
    curves, runs = plant(ARMS)
    runs = described(runs)
    summary = summarise(curves, runs, TARGET, UPSTREAM)
    return curves, runs, summary | {"ranks": by_rank(curves, runs, TARGET, UPSTREAM)}


def test_the_best_rate_and_the_forgetting_at_equal_gain_are_found(study):
    methods = study[2]["ranks"]["methods"]
    assert methods["full"]["best_rate"]["mean"] == pytest.approx(-4, abs=0.1)
    assert methods["lora_r4"]["best_rate"]["mean"] == pytest.approx(-3, abs=0.1)
    level = study[2]["ranks"]["level"]
    for name, arm in ARMS.items():
        assert methods[name]["forgetting"]["mean"] == pytest.approx(arm.forgets * level, rel=0.15), name
    assert (methods["lora_r4"]["family"], methods["lora_r4"]["rank"]) == ("lora", 4)


def test_a_frontier_ends_where_no_rate_reaches_further_with_all_its_seeds(study):
    summary = study[2]
    points = summary["ranks"]["methods"]["full"]["frontier"]
    assert [point["gain"] for point in points] == sorted(point["gain"] for point in points)
    assert all(point["forgetting"]["n"] == 5 for point in points)
    assert points[-1]["gain"] <= max(row["best_gain"]["mean"] for row in summary["groups"])


def test_a_best_rate_at_the_end_of_those_tried_is_a_bound():
    curves, runs = plant({"full": Arm(peak=1e-2)})
    about = {name: run | {"family": "full"} for name, run in runs.items()}
    found = by_rank(curves, about, TARGET, UPSTREAM)["methods"]["full"]["best_rate"]
    assert set(found["bounds"].values()) == {"at least"}


def test_the_rate_of_equal_gain_is_the_lowest_that_suffices(study):
    ranks = study[2]["ranks"]
    for method in ranks["methods"].values():
        gains = {row["lr"]: row["final_gain"]["mean"] for row in study[2]["groups"] if row["method"] == "full"}
        if method["family"] == "full":
            assert gains[method["equal_rate"]] >= ranks["equal"]
            assert all(gain < ranks["equal"] for rate, gain in gains.items() if rate < method["equal_rate"])


def test_the_intrinsic_dimension_is_where_nine_tenths_of_the_gain_are_reached():
    assert intrinsic_dimension([10, 100, 1000], [0.1, 0.5, 0.95], 1.0)[0] == pytest.approx(100 * 10 ** (0.4 / 0.45))
    assert intrinsic_dimension([10, 100], [0.95, 1.0], 1.0) == (10.0, "at most")
    curves, runs = plant({"full": Arm(noise=0), "sub_d10": Arm(noise=0, speed=0.1), "sub_d1000": Arm(noise=0)})
    dims = {"full": None, "sub_d10": 10, "sub_d1000": 1000}
    about = {n: r | {"family": r["method"].split("_")[0], "dim": dims[r["method"]]} for n, r in runs.items()}
    found = by_rank(curves, about, TARGET, UPSTREAM)
    assert found["intrinsic"]["sub"]["n"] == 5
    assert found["intrinsic"]["sub"]["mean"] <= 3
    alone = by_rank(*plant({"full": Arm(noise=0)}), TARGET, UPSTREAM)
    assert found["level"] == alone["level"]  # subspaces do not lower what is compared


def planted_updates(runs, steps=(0, 50, 100)):
    rows = {}
    for i, (run, a) in enumerate(runs.items()):
        size = (a["lr"] * 1e3) ** 0.5
        for matrix in ("layers.attention.query", "layers.feed_forward.up"):
            for layer in (0, 1):
                here = f"{matrix}/{layer}"
                spectra = {f"sigma_{k}": size / k for k in (1, 2, 4)}
                sides = [f"{name}_overlap_{side}" for name in ("base", "gradient") for side in ("input", "output")]
                found = spectra | {"stable_rank": 1.5 + layer, "relative_norm": size, "angle": math.degrees(size) / 2}
                found |= dict.fromkeys(sides, 0.2) | {"chance_input": 0.1, "chance_output": 0.1}
                found |= {f"intruders_{e}": e * (1 + i % 3) for e in (0.3, 0.5, 0.9)}
                rows.setdefault(run, {}).update({f"update/{what}/{here}": v for what, v in found.items()})
        cut = {f"truncated/{k}/{d}/loss": 3.0 - 0.1 * min(k, 4) for k in (0, 1, 4) for d in (TARGET, *UPSTREAM)}
        rows[run] |= cut
    return rows


@pytest.fixture(scope="module")
def measured(study):
    curves, runs, _ = study
    final = planted_updates(runs)
    return add_final(split_updates(curves)[1], final, dict.fromkeys(final, 100)), final


def test_updates_are_kept_apart_and_measured_once_for_a_step(study, measured):
    curves, (updates, final) = study[0], measured
    assert split_updates(curves)[0].equals(curves)
    both = split_updates(updates)
    assert both[1].num_rows + both[0].num_rows == updates.num_rows
    assert {metric.split("/")[0] for metric in both[0]["metric"].to_pylist()} == {"truncated"}
    assert add_final(updates, final, dict.fromkeys(final, 100)).num_rows == updates.num_rows
    more = add_final(updates, final, dict.fromkeys(final, 90))
    assert more.num_rows == 2 * updates.num_rows


def test_runs_get_the_means_over_their_matrices(study, measured):
    runs = final_means(study[1], measured[1])
    assert runs["full/lr_0.0001/seed_0"]["update"]["stable_rank"] == 2.0
    assert runs["full/lr_0.0001/seed_0"]["method"] == "full"
    assert mean_over_matrices({}) == {}


FIGURES = {
    *("frontiers", "gain_by_rank", "best_rate_by_rank", "gain_by_parameters"),
    *("update_spectra", "update_alignment", "intruder_dimensions", "truncation", "norm_and_angle"),
}


def test_every_figure_of_ranks_and_updates_is_drawn_with_its_caption(study, measured):
    curves, _, summary = study
    drawn = {name: figure for name, figure in draw(curves, summary, measured[0]).items() if name in FIGURES}
    assert drawn.keys() == FIGURES
    assert update_captions(summary).keys() >= FIGURES
    assert {row["name"] for row in _embed(drawn, summary)} == FIGURES


def test_a_study_without_ranks_has_none_of_them(study):
    curves, _, summary = study
    plain = {key: value for key, value in summary.items() if key != "ranks"}
    assert not draw(curves, plain).keys() & FIGURES
    assert update_captions(plain) == {}


def test_the_spectra_that_are_drawn_are_those_measured(study, measured):
    figure = draw_updates(measured[0], study[2])["update_spectra"]
    line = figure.axes[0].lines[0]
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 4])
    np.testing.assert_allclose(line.get_ydata(), [1, 0.5, 0.25])


def test_the_alignment_that_is_drawn_is_over_chance(study, measured):
    figure = draw_updates(measured[0], study[2])["update_alignment"]
    colours = np.asarray(figure.axes[0].collections[0].get_array())
    np.testing.assert_allclose(colours, 1.0)  # log2 of twice what chance gives


def test_gain_and_forgetting_of_a_cut_update_are_relative_to_the_base(study, measured):
    left, right = draw_updates(measured[0], study[2])["truncation"].axes
    np.testing.assert_allclose(left.lines[0].get_ydata(), [4 - 3.0, 4 - 2.9, 4 - 2.6])
    np.testing.assert_allclose(right.lines[0].get_ydata(), [0.5, 0.4, 0.1])  # of bases of 3 and 2 nats
