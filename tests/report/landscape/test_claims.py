import math

import pytest

from adaptlab import config
from adaptlab.report.claims import claim, judge
from adaptlab.report.effects import difference
from adaptlab.report.landscape.claims import level, number_of_pair, number_of_run, rank_correlation
from experiments.loss_landscape import Study
from tests.report.landscape.planted import UPSTREAM, landscape


def verdict(effect, lost=None, **options):
    _, runs, curves = landscape(lost)
    one = claim("A statement.", "here", effect, "nats/token", **options)
    return judge({"one": one}, curves, runs, "target", UPSTREAM)["one"]


def test_a_low_barrier_supports_that_there_is_none_and_a_high_one_contradicts_it():
    found = {
        arm: verdict(level(number_of_run("barrier"), arm, "lower", rates=1e-3), margin=-0.05).verdict
        for arm in ("far_full", "far_lora")
    }
    assert found == {"far_full": "supported", "far_lora": "contradicted"}


def test_a_level_is_the_mean_over_learning_rates_where_that_is_asked():
    at_all = verdict(level(number_of_run("barrier"), "far_lora", "higher", rates="same"))
    each = [verdict(level(number_of_run("barrier"), "far_lora", "higher", rates=r)) for r in (1e-4, 1e-3)]
    assert at_all.effect.mean == pytest.approx(sum(one.effect.mean for one in each) / 2)


def test_pairs_are_read_at_the_one_rate_that_has_them():
    found = verdict(level(number_of_pair("twin_barrier_target"), "far_full", "lower"), margin=-0.05)
    assert found.verdict == "supported"
    assert found.per_seed == pytest.approx({seed: -0.01 - 1e-3 * seed for seed in range(5)})
    same = difference(number_of_pair("twin_barrier_target"), "far_lora", "far_full", "higher")
    assert verdict(same).verdict == "inconclusive"  # every seed gave the same: the spread is not known


def test_pairs_that_all_sag_decide_by_their_rise_what_barriers_of_zero_leave_open():
    _, runs, curves = landscape()
    for run in runs.values():
        if "twin_distance" in run["update"]:
            run["update"] |= {"twin_barrier_target": 0.0, "twin_rise_target": -0.01 - 1e-3 * run["seed"]}
    claims = {
        name: claim(
            "A.", "here", level(number_of_pair(f"twin_{name}_target"), "far_full", "lower"), "nat", margin=-0.05
        )
        for name in ("barrier", "rise")
    }
    found = judge(claims, curves, runs, "target", UPSTREAM)
    assert {name: one.verdict for name, one in found.items()} == {"barrier": "inconclusive", "rise": "supported"}


def test_a_perfect_forecast_has_rank_correlation_one():
    found = verdict(rank_correlation("forecast", ["far_full", "far_lora"]), margin=0.7)
    assert [*found.per_seed.values()] == pytest.approx([1.0] * 5)


def test_a_predictor_is_compared_with_another_run_by_run():
    same = verdict(rank_correlation("forecast", ["far_full", "far_lora"], than="distance"))
    assert [*same.per_seed.values()] == pytest.approx([0.0] * 5)  # planted: distance rises with the forecast
    other = verdict(rank_correlation("forecast", ["far_full", "far_lora"], than="curvature_update"))
    assert min(other.per_seed.values()) > 0


def test_a_run_that_diverged_is_left_out_and_named():
    lost = "far_full/lr_0.001/seed_2"
    found = verdict(rank_correlation("forecast", ["far_full", "far_lora"]), lost)
    assert f"{lost} diverged and does not count" in found.notes
    assert found.effect.n == 5  # its seed has three other runs
    alone = verdict(level(number_of_run("barrier"), "far_full", "lower", rates=1e-3), lost)
    assert (alone.effect.n, alone.verdict) == (4, "inconclusive")


def test_a_number_that_was_not_measured_is_named_with_those_that_were():
    found = verdict(level(number_of_run("sharpness"), "far_full", "lower", rates=1e-3))
    assert math.isnan(found.effect.mean)
    assert any("sharpness was not measured" in note and "barrier" in note for note in found.notes)


def test_the_claims_name_methods_that_the_study_runs():
    study = Study(**config.validate(config.compose("loss_landscape"), schema=Study))
    methods = {name for place in study.targets for name in study.methods(place)}
    for one in study.claims.values():
        effect = one["effect"]
        assert {effect[side] for side in ("arm", "against") if side in effect} | {*effect.get("arms", [])} <= methods
    assert {*study.twins} <= methods
