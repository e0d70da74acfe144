import doctest
import io

from rich.console import Console

from adaptlab.report import files, words
from adaptlab.report.table import print_results, results_table
from adaptlab.report.words import headline


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
