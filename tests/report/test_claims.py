import json
import math

import numpy as np
import pytest

from adaptlab import config
from adaptlab.report import files
from adaptlab.report.claims import claim, judge, rule, verdicts_table
from adaptlab.report.curves import make_curves
from adaptlab.report.effects import Effect, Sample, difference, log_ratio
from adaptlab.report.quantities import (
    Reading,
    best_learning_rate,
    early_forgetting,
    forgetting,
    forgetting_at_gain,
    gain,
    updates_to_gain,
    zone_width,
)
from adaptlab.stats import Interval
from tests.report.planted import RATES, TARGET, UPSTREAM, Arm, plant


def _claim(effect, margin=0.0, **options):
    return claim("a statement", "a source", effect, "nats/token", margin, **options)


def _judge(arms, *effects, **options):
    """The verdicts on one claim for each effect."""
    claims = {str(i): _claim(effect, **options) for i, effect in enumerate(effects)}
    return list(judge(claims, *plant(arms), TARGET, UPSTREAM).values())


def _of(low, high):
    return Interval((low + high) / 2, low, high, 5, 1.0)


FORGETS = forgetting_at_gain(0.9)
PLAIN = Arm(forgets=0.2)


@pytest.mark.parametrize(
    ("interval", "margin", "ceiling", "expected"),
    [
        (_of(0.1, 0.3), 0.0, None, "supported"),
        (_of(0.1, 0.3), 0.2, None, "inconclusive"),
        (_of(0.1, 0.3), 0.5, None, "contradicted"),  # of the claimed sign, but credibly too small
        (_of(-0.3, -0.1), 0.0, None, "contradicted"),
        (_of(-0.001, 0.001), 0.0, None, "inconclusive"),  # a precise null is no support of a sign
        (_of(-0.001, 0.001), 0.01, None, "contradicted"),
        (_of(0.8, 1.2), 0.5, 1.5, "supported"),
        (_of(1.2, 1.6), 0.5, 1.5, "inconclusive"),
        (_of(1.6, 2.0), 0.5, 1.5, "contradicted"),
        (_of(0.3, math.inf), 0.2, None, "supported"),
        (_of(0.3, math.inf), 0.5, None, "inconclusive"),  # a lower bound never contradicts
        (_of(-math.inf, 0.3), 0.5, None, "contradicted"),
        (_of(0.8, math.inf), 0.5, 1.5, "inconclusive"),
        (_of(0.5, 0.7), 0.5, None, "inconclusive"),
        (Interval(0.5, math.nan, math.nan, 1, math.nan), 0.0, None, "inconclusive"),
    ],
)
def test_the_rule_reads_the_whole_interval(interval, margin, ceiling, expected):
    assert rule(interval, margin, ceiling) == expected


@pytest.mark.parametrize(
    ("forgets", "margin", "expected"),
    [(0.1, 0.02, "supported"), (0.1, 0.5, "contradicted"), (0.3, 0.0, "contradicted"), (0.2, 0.0, "inconclusive")],
)
def test_a_planted_difference_in_forgetting_gives_its_verdict(forgets, margin, expected):
    effect = difference(FORGETS, "arm", "plain", "lower")
    (verdict,) = _judge({"plain": PLAIN, "arm": Arm(forgets=forgets)}, effect, margin=margin)
    assert verdict.verdict == expected, verdict.reason
    assert verdict.effect.mean == pytest.approx(0.9 * (0.2 - forgets), abs=0.03)
    assert list(verdict.per_seed) == [0, 1, 2, 3, 4]
    assert verdict.effect.n == 5


def test_the_reasons_tell_a_small_effect_from_a_reversed_one():
    small = _judge({"plain": PLAIN, "arm": Arm(forgets=0.1)}, difference(FORGETS, "arm", "plain", "lower"), margin=0.5)
    turned = _judge({"plain": PLAIN, "arm": Arm(forgets=0.4)}, difference(FORGETS, "arm", "plain", "lower"))
    null = _judge({"plain": PLAIN, "arm": PLAIN}, difference(FORGETS, "arm", "plain", "lower"), margin=0.5)
    assert "is there, but is smaller" in small[0].reason
    assert "opposite sign" in turned[0].reason
    assert "cannot be told from zero" in null[0].reason


def test_each_effect_measures_what_was_planted():
    arms = {
        "plain": Arm(cliff=0.5),
        "quick": Arm(speed=6.0, cliff=0.5),
        "calm": Arm(cliff=0.0),
        "late": Arm(peak=1e-3, rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2)),
        "weak": Arm(forgets=0.05),
    }
    speed, calm, rate, final, higher = _judge(
        arms,
        log_ratio(updates_to_gain(0.5), "quick", "plain", "lower", rates="reference"),
        difference(early_forgetting(0.2), "calm", "plain", "lower", rates="same"),
        log_ratio(best_learning_rate(), "late", "plain", "higher"),
        difference(forgetting(), "weak", "calm", "lower"),
        difference(gain("best"), "late", "plain", "higher", rates=3e-4),
    )
    # The time t to half of the gain solves 1 - exp(-k t) = (1 - exp(-k)) / 2.
    times = [-math.log(1 - 0.5 * (1 - math.exp(-k))) / k for k in (6.0, 3.0)]
    assert speed.effect.mean == pytest.approx(math.log10(times[1] / times[0]), abs=0.03)
    assert calm.effect.mean == pytest.approx(0.5, abs=0.05)
    assert rate.effect.mean == pytest.approx(1.0, abs=0.05)
    assert final.effect.mean == pytest.approx(0.15, abs=0.02)
    at = [1 - (math.log10(3e-4 / peak) / 2) ** 2 for peak in (1e-3, 1e-4)]
    assert higher.effect.mean == pytest.approx(at[0] - at[1], abs=0.02)
    assert [v.verdict for v in (speed, calm, rate, final)] == ["supported"] * 4


def test_an_arm_at_its_own_best_rate_is_not_compared_at_anothers():
    arms = {"plain": Arm(), "late": Arm(peak=1e-3)}
    own, reference = _judge(
        arms,
        difference(gain(), "late", "plain", "higher"),
        difference(gain(), "late", "plain", "higher", rates="reference"),
    )
    assert own.effect.mean == pytest.approx(0.0, abs=0.02)
    assert reference.effect.mean == pytest.approx(-0.25, abs=0.05)


def test_a_zone_cut_off_by_the_grid_cannot_be_called_narrow_nor_its_rival_wide():
    # Usable zone: |log10(r / peak)| <= fall * sqrt(0.1), so 2 * 0.316 * fall decades.
    narrow, wide = Arm(fall=1.2), Arm(fall=10.0)
    effect = difference(zone_width(0.9), "narrow", "wide", "lower")
    (verdict,) = _judge({"narrow": narrow, "wide": wide}, effect, margin=0.1)
    assert verdict.bound == "at least"  # the wide zone is wider than the grid: the difference is a lower bound
    assert verdict.verdict == "supported"
    assert verdict.effect.high == math.inf
    assert any("wide, seed 0: the zone reaches the lowest and the highest" in note for note in verdict.notes)
    (turned,) = _judge({"narrow": narrow, "wide": wide}, difference(zone_width(0.9), "wide", "narrow", "lower"))
    assert (turned.bound, turned.verdict) == ("at most", "contradicted")
    (too_large,) = _judge({"narrow": narrow, "wide": wide}, effect, margin=5.0)
    assert too_large.verdict == "inconclusive"  # the zone may go on for five decades
    assert "only a bound" in too_large.reason


def test_two_open_zones_settle_nothing():
    # One touches the low end and falls off at the high end, the other the other way round.
    arms = {"a": Arm(fall=2.0, peak=1e-5), "b": Arm(fall=4.0, peak=1e-3)}
    (verdict,) = _judge(arms, difference(zone_width(0.9), "a", "b", "lower"))
    assert (verdict.verdict, verdict.bound) == ("inconclusive", "unknown")
    assert (verdict.effect.low, verdict.effect.high) == (-math.inf, math.inf)
    assert 0.4 < verdict.effect.mean < 0.8  # 0.316 * (4 - 2)


def test_too_few_seeds_decide_nothing():
    arms = {"plain": Arm(seeds=(0, 1, 2)), "arm": Arm(forgets=0.05, seeds=(0, 1, 2))}
    (verdict,) = _judge(arms, difference(FORGETS, "arm", "plain", "lower"))
    assert (verdict.verdict, verdict.tested) == ("inconclusive", False)
    assert verdict.reason == "3 of the 5 seeds it needs"
    assert verdict.effect.low > 0  # they are shown all the same


def test_copied_seeds_have_no_spread_to_judge_by():
    curves, runs = plant({"plain": Arm()})
    twins = {f"b{run}": {**a, "method": "twin"} for run, a in runs.items()}
    rows = curves.to_pylist()
    both = make_curves([(p + r["run"], r["step"], r["metric"], r["value"]) for p in ("", "b") for r in rows])
    stated = {"same": _claim(difference(FORGETS, "twin", "plain", "lower"))}
    verdict = judge(stated, both, runs | twins, TARGET, UPSTREAM)["same"]
    assert verdict.verdict == "inconclusive"
    assert "the same number" in verdict.reason


def test_an_arm_that_was_not_run_is_said_to_be_missing():
    (verdict,) = _judge({"plain": PLAIN}, difference(FORGETS, "lora", "plain", "lower"))
    assert verdict.verdict == "inconclusive"
    assert verdict.notes == ["lora was not run; the study has plain"]


def test_runs_that_diverged_or_are_missing_are_said():
    arms = {"plain": Arm(lost=((1e-3, 2),)), "arm": Arm(forgets=0.05)}
    curves, runs = plant(arms)
    runs.pop("arm/lr_0.0001/seed_3")
    claims = {
        "forgets": _claim(difference(FORGETS, "arm", "plain", "lower"), min_seeds=4),
        "zone": _claim(difference(zone_width(0.5), "arm", "plain", "higher")),
        "final": _claim(difference(gain(), "arm", "plain", "higher", rates=1e-3)),
    }
    verdicts = judge(claims, curves, runs, TARGET, UPSTREAM)
    assert verdicts["forgets"].effect.n == 4
    assert "arm, seed 3: there is no run" in verdicts["forgets"].notes
    assert "seed 3 is left out: it has no effect to compare" in verdicts["forgets"].notes
    assert "arm, seed 3: no run at 0.0001" in verdicts["zone"].notes
    assert "plain/lr_0.001/seed_2 diverged" in verdicts["zone"].notes
    assert "plain/lr_0.001/seed_2 diverged" in verdicts["final"].notes
    assert verdicts["final"].bound == "at least"  # the diverged run gained 0 at most, so the arm's lead is no less
    assert verdicts["final"].values["plain"][2] == 0.0


@pytest.mark.parametrize("cut", [False, True])
def test_divergence_bounds_the_early_peak_from_below_only_if_it_is_early(cut):
    study = plant({"calm": Arm(), "plain": Arm(cliff=0.5, lost=((1e-4, 0),))}, cut)
    claims = {
        str(share): _claim(difference(early_forgetting(share), "calm", "plain", "lower", rates=1e-4))
        for share in (0.6, 0.3)
    }
    early, late = judge(claims, *study, TARGET, UPSTREAM).values()
    assert (early.bound, early.verdict) == ("at least", "supported")
    assert (late.bound, late.verdict) == ("", "supported")


def test_a_run_that_a_sweep_pruned_does_not_count():
    curves, runs = plant({"plain": PLAIN, "arm": Arm(forgets=0.1)})
    runs["arm/lr_0.0001/seed_1"]["pruned_at"] = 20
    stated = {"a": _claim(difference(FORGETS, "arm", "plain", "lower"), min_seeds=4)}
    verdict = judge(stated, curves, runs, TARGET, UPSTREAM)["a"]
    assert list(verdict.per_seed) == [0, 2, 3, 4]
    assert "arm/lr_0.0001/seed_1 was pruned and does not count" in verdict.notes


def test_a_window_without_a_measurement_gives_no_number():
    (verdict,) = _judge({"a": Arm(), "b": Arm()}, difference(early_forgetting(0.04), "a", "b", "lower"))
    assert verdict.verdict == "inconclusive"
    assert "b, seed 0: it was not measured in the first 4 updates" in verdict.notes


def test_a_rate_at_which_nothing_is_gained_does_not_count_among_the_same_rates():
    arms = {"plain": Arm(fall=1.05), "arm": Arm(fall=1.05, forgets=0.05, rates=(1e-6, *RATES))}
    arms["plain"] = arms["plain"]._replace(rates=(1e-6, *RATES))
    (verdict,) = _judge(arms, difference(FORGETS, "arm", "plain", "lower", rates="same"))
    assert verdict.verdict == "supported"
    assert any(note.startswith("learning rate 1e-06 does not count") for note in verdict.notes)


def test_the_same_rate_is_recognised_through_rounding():
    rounded = tuple(rate * (1 + 2e-16) for rate in RATES)
    assert set(rounded) != set(RATES)
    arms = {"plain": Arm(), "arm": Arm(forgets=0.05, rates=rounded)}
    verdicts = _judge(
        arms,
        *(difference(FORGETS, "arm", "plain", "lower", rates=rates) for rates in ("same", "reference", 1e-3)),
    )
    assert [v.effect.n for v in verdicts] == [5, 5, 5]


def test_arms_with_other_seeds_are_independent_groups():
    arms = {"plain": Arm(), "arm": Arm(forgets=0.05, seeds=(10, 11, 12, 13, 14, 15))}
    (verdict,) = _judge(arms, difference(FORGETS, "arm", "plain", "lower"))
    assert verdict.verdict == "supported"
    assert verdict.per_seed == {}
    assert verdict.effect.n == 5
    assert any("Welch" in note for note in verdict.notes)
    paired = _judge({"plain": Arm(), "arm": Arm(forgets=0.05)}, difference(FORGETS, "arm", "plain", "lower"))[0]
    assert paired.effect.high - paired.effect.low < verdict.effect.high - verdict.effect.low


def test_many_claims_are_each_judged_by_a_wider_interval():
    arms = {"plain": PLAIN, "arm": Arm(forgets=0.1), "twin": Arm(forgets=0.195)}
    clear, unclear = difference(FORGETS, "arm", "plain", "lower"), difference(FORGETS, "twin", "plain", "lower")
    (alone,) = _judge(arms, clear)
    two = _judge(arms, unclear, clear)
    three = _judge(arms, unclear, unclear, clear)
    assert alone.level == pytest.approx(0.95)
    assert [v.level for v in two] == pytest.approx([0.95, 0.975])  # the clear one paid, the other is judged alone
    assert [v.level for v in three] == pytest.approx([0.975, 0.975, 1 - 0.05 / 3])
    assert two[1].effect.low < alone.effect.low
    for verdict in (alone, *two, *three):
        assert verdict.verdict == rule(verdict.effect, 0.0, None)


def test_the_chance_of_any_wrong_decision_is_the_stated_one():
    study = plant({"plain": Arm(rates=(1e-4,), seeds=(0,))})
    random = np.random.default_rng(0)

    def null(number):  # an effect whose true mean is the margin, 0: any decision is wrong
        values = random.standard_normal(5)
        arm = {s: Reading(float(v)) for s, v in enumerate(values)}
        sample = Sample(arm, dict.fromkeys(arm, Reading(0.0)), {}, [])
        return _claim(Effect(f"null {number}", lambda found: sample))

    def any_decided():
        verdicts = judge({str(i): null(i) for i in range(6)}, *study, TARGET, UPSTREAM)
        return any(v.verdict != "inconclusive" for v in verdicts.values())

    wrong = sum(any_decided() for _ in range(400))
    # Binomial with mean 20 and deviation 4.4; without a correction the mean is 106.
    assert 8 <= wrong <= 33


def test_a_limit_on_forgetting_narrows_the_zone():
    arms = {"plain": Arm(fall=1.2), "harsh": Arm(fall=1.2, forgets=0.3)}
    free, limited = (difference(zone_width(0.5, limit=limit), "harsh", "plain", "lower") for limit in (None, 0.22))
    free, limited = _judge(arms, free, limited)
    assert abs(free.effect.mean) < 0.05
    assert limited.effect.mean > 0.2


def test_claims_that_could_not_be_tested_cost_the_others_nothing():
    arms = {"plain": PLAIN, "arm": Arm(forgets=0.1)}
    tested, absent = _judge(
        arms, difference(FORGETS, "arm", "plain", "lower"), difference(FORGETS, "lora", "plain", "lower")
    )
    assert tested.level == pytest.approx(0.95)
    assert not absent.tested


def test_verdicts_are_strict_json_with_their_rule():
    arms = {"narrow": Arm(fall=1.2), "wide": Arm(fall=10.0)}
    stated = {"zone": _claim(difference(zone_width(0.9), "narrow", "wide", "lower"), 0.1)}
    table = verdicts_table(judge(stated, *plant(arms), TARGET, UPSTREAM))
    read = json.loads(json.dumps(files.to_json(table), allow_nan=False))
    assert (read["stated"], read["tested"]) == (1, 1)
    zone = read["claims"]["zone"]
    assert zone["effect"]["high"] is None
    assert zone["bound"] == "at least"
    assert zone["rule"] == "effect > 0.1 nats/token, 95% level, at least 5 seeds"
    assert set(zone["values"]) == {"narrow", "wide"}


def test_wrong_claims_are_refused_when_they_are_stated():
    effect = difference(FORGETS, "a", "b", "lower")
    with pytest.raises(ValueError, match=r"ceiling=0\.1 must be above margin=0\.5"):
        _claim(effect, 0.5, ceiling=0.1)
    with pytest.raises(ValueError, match="min_seeds=1"):
        _claim(effect, min_seeds=1)
    with pytest.raises(ValueError, match="got 95"):
        _claim(effect, level=95)
    with pytest.raises(ValueError, match="'less' is neither"):
        difference(FORGETS, "a", "b", "less")
    with pytest.raises(ValueError, match="'worst' is none of best, reference, same"):
        difference(FORGETS, "a", "b", "lower", rates="worst")
    with pytest.raises(ValueError, match="'last' is neither"):
        gain("last")
    with pytest.raises(ValueError, match="got 90"):
        zone_width(90)
    with pytest.raises(ValueError, match="'maths' is no upstream domain"):
        _judge({"a": PLAIN, "b": PLAIN}, difference(forgetting("maths"), "a", "b", "lower"))


def test_the_claims_of_the_schedule_study_are_built_from_yaml_and_judged():
    node = config.validate(config.compose("claims/lr_schedule")["claims"])
    claims = config.instantiate(node)
    arms = {
        "full_linear": Arm(cliff=0.05, fall=1.2),
        "no_warmup": Arm(cliff=0.5, fall=1.2),
        "discriminative": Arm(forgets=0.1),
        "unfreezing": Arm(forgets=0.3),
        "carried_state": Arm(speed=6.0),
        "from_scratch": Arm(fall=3.0),
        "lora": Arm(peak=1e-3, forgets=0.2, rates=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2), fall=1.2),
    }
    verdicts = judge(claims, *plant(arms), TARGET, UPSTREAM)
    assert {name: v.verdict for name, v in verdicts.items()} == {
        "fine_tuning_has_a_narrower_zone": "supported",
        "discriminative_rates_forget_less": "supported",
        "gradual_unfreezing_forgets_less": "contradicted",
        "carried_state_converges_faster": "supported",
        "warm_up_avoids_the_early_cliff": "supported",
        "lora_forgets_less": "inconclusive",
        "lora_wants_ten_times_the_rate": "supported",
    }
