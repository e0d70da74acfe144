import json
import math

import numpy as np
import pytest
import scipy.stats

from adaptlab.report import files
from adaptlab.report.curves import make_curves
from adaptlab.report.summary import summarise

NAN = math.nan
STEPS = [0, 10, 20]


def _study(losses, **attributes):
    """Curves and runs from `{run "method/lr/seed": (german, news, code)}`."""
    runs, rows = {}, []
    for name, curves in losses.items():
        method, rate, seed = name.split("/")
        runs[name] = {"method": method, "lr": float(rate), "seed": int(seed), **attributes.get(name, {})}
        for domain, values in zip(("german", "news", "code"), curves, strict=True):
            rows += [(name, s, f"held_out/{domain}/loss", v) for s, v in zip(STEPS, values, strict=True)]
    return make_curves(rows), runs


FULL_0 = ([4.0, 3.0, 2.0], [3.0, 3.5, 4.5], [2.0, 2.0, 3.0])
FULL_1 = ([4.0, 3.5, 2.5], [3.0, 3.5, 4.0], [2.0, 2.5, 3.0])
LORA_0 = ([4.0, 3.0, 3.0], [3.0, 3.25, 3.25], [2.0, 2.25, 2.25])
LORA_1 = ([4.0, 3.5, 3.0], [3.0, 3.0, 3.5], [2.0, 2.0, 2.0])
TWO_BY_TWO = {"full/0.1/0": FULL_0, "full/0.1/1": FULL_1, "lora/0.2/0": LORA_0, "lora/0.2/1": LORA_1}


def _summary(losses, fractions=(0.5, 1.0), **attributes):
    return summarise(*_study(losses, **attributes), "german", ["news", "code"], fractions)


def test_the_numbers_of_a_small_study_are_those_computed_by_hand():
    got = _summary(TWO_BY_TWO)
    # best gains: full 2.0 and 1.5, lora 1.0 and 1.0 -> equal gains 0.5 and 1.0
    assert got["equal_gain"]["levels"] == [0.5, 1.0]
    full, lora = got["methods"]["full"], got["methods"]["lora"]
    assert (full["best_gain"]["mean"], full["best_gain"]["n"]) == (1.75, 2)
    assert lora["best_gain"]["mean"] == 1.0
    assert lora["best_step"]["mean"] == 15.0  # steps 10 and 20
    assert full["final_change"]["news"]["mean"] == 1.25
    assert full["final_change"]["code"]["mean"] == 1.0
    assert full["final_change"]["mean"]["mean"] == 1.125
    # full/0 reaches 0.5 at step 5: news +.25, code 0. full/1 reaches it at step 10: news +.5, code +.5.
    half, whole = full["equal_gain"]
    assert half["step"]["mean"] == 7.5
    assert [half["change"][d]["mean"] for d in ("news", "code", "mean")] == [0.375, 0.25, 0.3125]
    # full/0 reaches 1.0 at step 10: news +.5, code 0. full/1 at step 15: news +.75, code +.75.
    assert [whole["change"][d]["mean"] for d in ("news", "code", "mean")] == [0.625, 0.375, 0.5]
    # lora at 1.0: +.25 and +.25 for seed 0; +.5 and 0 for seed 1
    assert [lora["equal_gain"][1]["change"][d]["mean"] for d in ("news", "code")] == [0.375, 0.125]


def test_intervals_are_students_over_seeds():
    got = _summary(TWO_BY_TWO)["methods"]["full"]["best_gain"]
    half = scipy.stats.t.ppf(0.975, 1) * np.std([2.0, 1.5], ddof=1) / math.sqrt(2)
    assert got["low"] == pytest.approx(1.75 - half)
    assert got["high"] == pytest.approx(1.75 + half)


def test_methods_are_compared_pairwise_by_seed():
    comparison = _summary(TWO_BY_TWO)["comparisons"][1]
    assert (comparison["a"], comparison["b"], comparison["gain"]) == ("full", "lora", 1.0)
    # mean change at gain 1, lora minus full: seed 0: .25 - .25; seed 1: .25 - .75
    assert comparison["difference"]["mean"]["mean"] == -0.25
    assert comparison["difference"]["mean"]["sd"] == pytest.approx(math.sqrt(0.125))


def test_one_seed_claims_no_interval_and_says_so_in_json():
    got = _summary({"full/0.1/0": FULL_0, "lora/0.2/0": LORA_0})
    gain = json.loads(json.dumps(files.to_json(got)))["methods"]["full"]["best_gain"]
    assert gain == {"mean": 2.0, "low": None, "high": None, "n": 1, "sd": None}


def test_the_representative_rate_is_the_best_and_the_others_are_reported_too():
    weak = ([4.0, 3.9, 3.75], [3.0, 3.0, 3.0], [2.0, 2.0, 2.0])
    got = _summary({**TWO_BY_TWO, "full/0.01/0": weak, "full/0.01/1": weak})
    assert got["methods"]["full"]["lr"] == 0.1
    assert [(row["method"], row["lr"]) for row in got["groups"]] == [("full", 0.01), ("full", 0.1), ("lora", 0.2)]
    assert got["equal_gain"]["levels"] == [0.5, 1.0]  # the weak rate does not lower what is compared
    row = got["groups"][0]["equal_gain"][0]
    assert row["reached"] == 0
    assert math.isnan(row["change"]["mean"]["mean"])


def test_a_level_that_one_seed_missed_gives_no_mean_over_the_others():
    weak = ([4.0, 3.9, 3.75], [3.0] * 3, [2.0] * 3)
    got = _summary({**TWO_BY_TWO, "full/0.01/0": weak, "full/0.01/1": LORA_1})
    row = got["groups"][0]["equal_gain"][0]
    assert row["reached"] == 1
    assert math.isnan(row["change"]["mean"]["mean"])


def test_a_diverged_rate_does_not_represent_its_method_and_is_warned_of():
    wild = ([4.0, 1.0, NAN], [3.0, 9.0, NAN], [2.0, 9.0, NAN])
    got = _summary({**TWO_BY_TWO, "full/1.0/0": wild, "full/1.0/1": FULL_0})
    assert got["methods"]["full"]["lr"] == 0.1
    row = got["groups"][1]
    assert row["diverged"] == ["full/1.0/0"]
    assert math.isnan(row["final_gain"]["mean"])
    assert row["best_gain"]["mean"] == 2.5
    assert "full/1.0/0 diverged" in got["warnings"][0]


def test_a_divergence_told_by_the_run_counts_though_its_last_loss_is_finite():
    got = _summary(TWO_BY_TWO, **{"full/0.1/1": {"diverged_at": 17}})
    assert got["methods"]["full"]["diverged"] == ["full/0.1/1"]


def test_no_gain_leaves_nothing_to_equal():
    worse = ([4.0, 4.5, 5.0], [3.0, 3.5, 4.5], [2.0, 2.0, 3.0])
    got = _summary({"full/0.1/0": worse, "lora/0.2/0": LORA_0})
    assert got["equal_gain"]["levels"] == got["comparisons"] == []
    assert "gained nothing" in got["warnings"][0]
    assert got["methods"]["full"]["best_gain"]["mean"] == 0.0


def test_runs_that_start_from_different_bases_are_warned_of():
    other = ([4.1, 3.0, 3.0], [3.0, 3.25, 3.25], [2.0, 2.25, 2.25])
    (warning,) = _summary({"full/0.1/0": FULL_0, "lora/0.2/0": other})["warnings"]
    assert "run lora/0.2/0 has loss 4.1 on german" in warning


def test_further_numbers_are_averaged_and_further_text_is_carried():
    extra = {
        "full/0.1/0": {"tokens_per_second": 100.0, "delta_digest": "ab"},
        "full/0.1/1": {"tokens_per_second": 300.0, "delta_digest": "cd"},
    }
    got = _summary(TWO_BY_TWO, **extra)
    assert got["methods"]["full"]["extra"]["tokens_per_second"]["mean"] == 200.0
    assert "delta_digest" not in got["methods"]["full"]["extra"]
    assert got["runs"]["full/0.1/1"]["delta_digest"] == "cd"


def test_every_held_out_metric_is_summarised_at_the_start_and_the_end():
    table, runs = _study({"full/0.1/0": FULL_0})
    rows = [tuple(r.values()) for r in table.to_pylist()]
    rows += [("full/0.1/0", s, "held_out/news/accuracy", a) for s, a in ((0, 0.5), (20, 0.25))]
    got = summarise(make_curves(rows), runs, "german", ["news", "code"])
    assert got["base"]["news"] == {"accuracy": 0.5, "loss": 3.0}
    assert got["methods"]["full"]["final"]["news"]["accuracy"]["mean"] == 0.25


def test_bad_input_is_named():
    table, runs = _study(TWO_BY_TWO)
    with pytest.raises(ValueError, match="no runs"):
        summarise(table, {}, "german", ["news"])
    with pytest.raises(KeyError, match=r"'full/0.1/0' has no \['lr', 'seed'\]"):
        summarise(table, {"full/0.1/0": {"method": "full"}}, "german", ["news"])
    with pytest.raises(ValueError, match=r"in \(0, 1\], got \[2\]"):
        summarise(table, runs, "german", ["news"], fractions=[2])
    with pytest.raises(ValueError, match="repeat a seed"):
        summarise(table, {run: {"method": "m", "lr": 1.0, "seed": 0} for run in runs}, "german", ["news"])


def test_many_runs_with_another_start_are_one_warning_for_each_domain():
    other = ([8.0, 7.0, 6.0], [9.0, 8.0, 7.0], [2.0, 2.0, 2.0])
    scratch = {f"scratch/0.1/{seed}": other for seed in range(3)}
    german, news = _summary({"full/0.1/0": FULL_0, **scratch})["warnings"]
    assert "scratch/0.1/0 has loss 8 on german and run full/0.1/0 4 (2 more runs differ too)" in german
    assert "9 on news" in news


def test_many_diverged_runs_are_one_warning():
    lost = {f"full/0.1/{seed}": FULL_0 for seed in range(4)}
    (warning,) = _summary(lost, **{name: {"diverged_at": 15} for name in lost})["warnings"]
    assert warning.startswith("4 runs diverged")
    assert all(name in warning for name in lost)


def test_the_usable_zone_of_a_method_needs_several_rates():
    one = _summary({"full/0.1/0": FULL_0, "full/0.1/1": FULL_1})
    two = _summary({"full/0.1/0": FULL_0, "full/0.1/1": FULL_1, "full/1.0/0": LORA_0, "full/1.0/1": LORA_1})
    assert one["zones"] == {}
    # final gains: 2 and 1.5 at rate .1, 1 and 1 at rate 1; the threshold .9 * best is crossed on the way
    widths = [(2.0 - 1.8) / (2.0 - 1.0), (1.5 - 1.35) / (1.5 - 1.0)]
    zone = two["zones"]["full"]
    assert zone["width"]["mean"] == pytest.approx(np.mean(widths))
    assert (zone["open_low"], zone["open_high"], zone["censored"]) == (True, False, 2)
    assert zone["high"] == pytest.approx(0.1 * 10 ** (0.175 / 0.75))
