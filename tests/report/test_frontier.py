"""Methods compared over all their learning rates, where the answer is planted."""

import numpy as np
import pytest

from adaptlab import config
from adaptlab.report.claims import claim, judge
from adaptlab.report.effects import difference
from adaptlab.report.frontier import attained, frontier, frontier_forgetting, measured, rate_at_gain
from adaptlab.report.outcomes import outcomes
from adaptlab.report.quantities import forgetting_at_gain
from tests.report.planted import TARGET, UPSTREAM, Arm, plant


def found(arms, **options):
    return outcomes(*plant(arms, **options), TARGET, UPSTREAM)


def verdict(arms, quantity, better="lower", margin=0.01, runs=None):
    curves, planted = plant(arms)
    planted = planted if runs is None else runs(planted)
    one = claim("a statement", "a source", difference(quantity, "a", "b", better), "nats/token", margin)
    return judge({"one": one}, curves, planted, TARGET, UPSTREAM)["one"]


def test_the_frontier_is_the_rate_that_forgets_least_among_those_that_reach_the_gain():
    rates = found({"a": Arm(noise=0.0)})["a"]
    point = frontier(rates, 0.3)
    assert point is not None
    means = {}
    for rate, seeds in rates.items():
        change = [np.interp(0.3, r.path.gain_N, r.path.change["mean"], right=np.nan) for r in seeds.values()]
        means[rate] = np.mean(change)
    assert np.mean([*point.values.values()]) == pytest.approx(np.nanmin([*means.values()]))
    assert set(point.values) == {0, 1, 2, 3, 4}


def test_what_no_rate_reaches_with_all_its_seeds_is_not_on_the_frontier():
    rates = found({"a": Arm()})["a"]
    assert frontier(rates, attained(rates)) is not None
    assert frontier(rates, attained(rates) + 1e-6) is None


def harsh_at_its_best(curves):
    """Make the runs of `b` at its best rate forget five times as much."""
    import pyarrow as pa

    columns = curves.to_pydict()
    factor = [
        5.0 if r.startswith("b/lr_0.0001/") and m != f"held_out/{TARGET}/loss" else 1.0
        for r, m in zip(columns["run"], columns["metric"], strict=True)
    ]
    start = {
        (r, m): v
        for r, m, s, v in zip(*(columns[c] for c in ("run", "metric", "step", "value")), strict=True)
        if s == 0
    }
    keys = zip(columns["run"], columns["metric"], columns["value"], factor, strict=True)
    values = [start[r, m] + f * (v - start[r, m]) for r, m, v, f in keys]
    return curves.set_column(3, "value", pa.array(values))


def test_a_method_that_forgets_at_its_best_rate_only_does_not_lose_on_the_frontier():
    curves, runs = plant({"a": Arm(), "b": Arm()})
    quantities = (forgetting_at_gain(0.5), frontier_forgetting((0.5,)))
    claims = {str(i): claim("s", "s", difference(q, "a", "b", "lower"), "nats", 0.01) for i, q in enumerate(quantities)}
    at_best, over_rates = judge(claims, harsh_at_its_best(curves), runs, TARGET, UPSTREAM).values()
    assert at_best.verdict == "supported"  # though both can do the same
    assert over_rates.verdict != "supported"


def test_a_method_that_forgets_less_at_every_rate_wins_on_the_frontier():
    won = verdict({"a": Arm(forgets=0.1), "b": Arm(forgets=0.4)}, frontier_forgetting())
    assert won.verdict == "supported"
    assert len(won.per_seed) == 5
    assert any("the frontier's learning rate is" in note for note in won.notes)
    lost = verdict({"a": Arm(forgets=0.4), "b": Arm(forgets=0.1)}, frontier_forgetting())
    assert lost.verdict == "contradicted"


def test_an_arm_that_gains_nothing_has_no_frontier():
    nothing = verdict({"a": Arm(peak=1e-12), "b": Arm()}, frontier_forgetting())
    assert nothing.verdict == "inconclusive"
    assert any("gained nothing" in note for note in nothing.notes)


def intruders(planted):
    """Runs with more intruders the higher the rate, and more of them in `a`."""

    def of(run):
        wobble = 0.01 * np.random.default_rng([run["seed"], ord(run["method"])]).normal()
        return {"intruders_0.5": (3.0 if run["method"] == "a" else 1.0) * (1e4 * run["lr"]) ** 0.5 + wobble}

    return {name: run | {"update": of(run)} for name, run in planted.items()}


def test_updates_are_compared_at_the_lowest_rate_of_equal_gain():
    arms = {"a": Arm(noise=0.0), "b": Arm(noise=0.0)}
    rates = found(arms)["a"]
    assert rate_at_gain(rates, 0.85) == 3e-5  # 1e-4 gains most
    assert rate_at_gain(rates, 2.0) is None
    seen = verdict(arms, measured("intruders_0.5", 0.85), "higher", 0.5, intruders)
    assert seen.verdict == "supported"
    assert seen.effect.mean == pytest.approx(2 * 0.3**0.5, abs=0.05)
    assert "a is read at learning rate 3e-05" in seen.notes


def test_a_measurement_that_was_not_made_is_named():
    seen = verdict({"a": Arm(), "b": Arm()}, measured("intruders_0.1"), "higher", 0.5, intruders)
    assert seen.verdict == "inconclusive"
    assert any("intruders_0.1 was not measured; there are ['intruders_0.5']" in note for note in seen.notes)


def test_fractions_that_mean_nothing_are_refused():
    with pytest.raises(ValueError, match="fractions must be in"):
        frontier_forgetting(())
    with pytest.raises(ValueError, match="fraction must be in"):
        measured("stable_rank", 0.0)


def test_the_claims_of_the_study_of_low_rank_updates_are_built_from_yaml_and_judged():
    claims = config.instantiate(config.validate(config.compose("claims/low_rank")["claims"]))
    rates = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    arms = {
        "full": Arm(forgets=0.4),
        **{f"lora_r{rank}": Arm(forgets=0.2, peak=1e-3, rates=rates) for rank in (1, 4, 16, 64)},
        "rslora_r64": Arm(forgets=0.2, peak=1e-3, rates=rates),
        "pissa_r16": Arm(speed=9.0),
        "attention_r64": Arm(forgets=0.2, rates=(1e-6, 3e-6)),
    }
    curves, runs = plant(arms)
    count = {name: 0.02 if name == "full" else 2.0 for name in arms}
    runs = {
        name: run | {"update": {"intruders_0.5": count[run["method"]] + 0.01 * run["seed"] * (run["method"] == "full")}}
        for name, run in runs.items()
    }
    verdicts = judge(claims, curves, runs, TARGET, UPSTREAM)
    assert {name: v.verdict for name, v in verdicts.items()} == {
        "lora_forgets_less": "supported",
        "lower_ranks_forget_less": "contradicted",  # a precise null
        "lora_gains_as_much": "supported",
        "lora_wants_ten_times_the_rate": "supported",
        "the_best_rate_does_not_depend_on_rank": "supported",
        "all_layers_beat_attention_only": "supported",
        "rank_stabilised_scaling_helps_at_high_rank": "inconclusive",
        "pissa_starts_faster": "supported",
        "lora_has_intruder_dimensions": "supported",
    }
