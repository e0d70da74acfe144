import doctest
import io

from rich.console import Console

from adaptlab.report import files, words
from adaptlab.report.claims import claim, judge
from adaptlab.report.effects import difference
from adaptlab.report.quantities import forgetting_at_gain
from adaptlab.report.table import print_results, results_table
from adaptlab.report.words import headline
from tests.report.conftest import TARGET, UPSTREAM


def test_docstring_examples_hold():
    assert doctest.testmod(words).failed == 0
    assert doctest.testmod(files).failed == 0


def test_the_headline_states_seeds_and_intervals(make_study):
    *_, summary = make_study()
    first, *_, verdict = headline(summary)
    assert first.startswith("full (learning rate 0.001) lowered the loss on german parliament by at most 1.0")
    assert "95% interval" in first
    assert "n = 3 seeds" in first
    assert "paired by seed" in verdict


def test_one_seed_is_said_to_have_no_interval(make_study):
    *_, summary = make_study(seeds=(0,))
    *sentences, verdict = headline(summary)
    assert all("one seed: no interval" in sentence for sentence in sentences)
    assert "not known" in verdict
    assert "95%" not in " ".join([*sentences, verdict])


def test_the_verdict_says_which_is_higher_and_whether_that_is_settled():
    def verdict(mean, low, high):
        interval = {"mean": mean, "low": low, "high": high, "n": 3}
        difference = {"a": "full", "b": "lora", "difference": {"mean": interval}}
        return words._verdict(difference, {"confidence": 0.95})

    assert "0.100 nats/token higher with full than with lora" in verdict(-0.1, -0.2, -0.05)
    assert "excludes zero" in verdict(-0.1, -0.2, -0.05)
    assert "higher with lora than with full" in verdict(0.1, -0.1, 0.3)
    assert "do not settle" in verdict(0.1, -0.1, 0.3)
    assert "cannot be compared" in verdict(float("nan"), 0.0, 0.0)


def _printed(summary, width=80):
    file = io.StringIO()
    print_results(summary, Console(width=width, file=file))
    return file.getvalue()


def test_the_console_table_has_a_column_for_each_method_and_the_warnings(make_study):
    *_, summary = make_study(diverge=True, rates=(1e-3,))
    text = _printed(summary)
    for part in ("full", "lora", "best target gain", "Trainable parameters", "2.44 M", "Warning: Run full"):
        assert part in text
    assert "nan" not in text


def test_two_methods_with_intervals_fit_80_columns_unwrapped(make_study):
    *_, summary = make_study()
    rows = [line for line in _printed(summary).splitlines() if line.startswith("│")]
    assert len(rows) == results_table(summary).row_count


def test_many_methods_are_told_by_their_extremes_and_stand_in_rows(make_study):
    *_, summary = make_study(methods=tuple("abcde"), rates=(1e-3,))
    sentences = headline(summary)
    assert len(sentences) == 2
    gains = {name: row["best_gain"]["mean"] for name, row in summary["methods"].items()}
    assert f"{max(gains, key=gains.get)} (0.001) lowered the loss on german parliament most" in sentences[0]
    changes = {name: row["equal_gain"][-1]["change"]["mean"]["mean"] for name, row in summary["methods"].items()}
    assert f"and most with {max(changes, key=changes.get)}, by " in sentences[1]
    table = results_table(summary)
    assert table.row_count == 5
    assert [str(column.header) for column in table.columns][:2] == ["method", "learning rate"]


def test_verdicts_are_printed_with_their_effect_and_reason(make_study):
    curves, runs, summary = make_study()
    effect = difference(forgetting_at_gain(0.9), "lora", "full", "lower")
    claims = {"lora": claim("LoRA [b]forgets[/b] less.", "a source", effect, "nats/token", min_seeds=3)}
    verdicts = judge(claims, curves, runs, TARGET, UPSTREAM)
    output = io.StringIO()
    print_results(summary, Console(file=output, width=160), verdicts)
    text = output.getvalue()
    assert "LoRA [b]forgets[/b] less." in text
    assert f"{verdicts['lora'].verdict}: " in text
    assert f"{verdicts['lora'].effect.mean:+.3f}".replace("-", "\N{MINUS SIGN}") in text
    assert "1 claim was stated before the runs: 1 " in text


def test_an_effect_that_is_only_a_bound_looks_like_one():
    def said(bound, mean, low, high):
        row = {"bound": bound, "effect": {"mean": mean, "low": low, "high": high}}
        return words.effect(row, digits=1).replace("\N{MINUS SIGN}", "-")

    assert said("at most", -0.5, float("-inf"), -0.2) == "≤ -0.5 (-∞, -0.2]"
    assert said("unknown", 0.5, None, None) == "≈ +0.5 (-∞, ∞)"
    assert said("", 0.5, None, None) == "+0.5"
    assert said("at least", 0.5, None, None) == "≥ +0.5"
    assert said("", None, None, None) == "\N{EN DASH}"


def test_many_tests_are_said_to_widen_the_intervals():
    rows = {
        "a": {"stated_level": 0.95, "verdict": "supported"},
        "b": {"stated_level": 0.9, "verdict": "inconclusive"},
        "c": {"stated_level": 0.95, "verdict": "inconclusive"},
    }
    text = words.judged({"stated": 3, "tested": 2, "claims": rows})
    assert text.startswith("3 claims were stated before the runs: 1 supported and 2 inconclusive; 2 could be tested.")
    assert "among the 2 is at most 0.1." in text
    assert "Holm" not in words.judged({"stated": 3, "tested": 1, "claims": rows})
