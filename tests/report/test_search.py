"""The account of a search: the front, who is trained again, what is fresh, and the page."""

import io
import math
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from adaptlab.report import finalists, print_search, summarise_search, write_search
from adaptlab.report.curves import make_curves
from adaptlab.report.search import gains_at, pareto
from adaptlab.report.search_words import ordered, sentences


def run(method: str, loss: float | None, parameters: int, seed: int = 0, pruned: int | None = None) -> dict[str, Any]:
    diverged = 7 if loss is None else None
    identity = {"method": method, "lr": 0.01, "seed": seed, "steps": 40}
    return identity | {
        "target_loss": loss,
        "trainable_parameters": parameters,
        "pruned_at": pruned,
        "diverged_at": diverged,
    }


SELECTION = {
    "small": run("small", 2.9, 100),
    "large": run("large", 2.5, 10_000, pruned=10),
    "waste": run("waste", 2.8, 20_000, pruned=10),
    "lost": run("lost", None, 1_000),
}
FRESH = {
    f"{name}{seed}": run(name, loss, SELECTION[name]["trainable_parameters"], seed)
    for name, seed, loss in (
        ("small", 1, 3.1),
        ("small", 2, 3.3),
        ("large", 1, 2.6),
        ("large", 2, 2.6),
    )
}
SAID = {name: f"method {name}" for name in SELECTION}
BASE = {"selection": 3.0, "fresh": 3.4}


def search(**changes: Any) -> dict[str, Any]:
    given = {"said": SAID, "selection": SELECTION, "fresh": FRESH, "base": BASE, "kind": "gain_per_parameter"}
    return summarise_search(**(given | changes))


def test_nobody_on_the_front_is_beaten_in_both():
    points = {"a": (10, 0.1), "b": (10, 0.2), "c": (5, 0.05), "d": (50, 0.2), "e": (70, 0.3), "f": (60, -1.0)}
    front = pareto(points)
    assert front == ["c", "b", "e"]
    for name, (size, gain) in points.items():
        beaten = any(s <= size and g >= gain and (s, g) != (size, gain) for s, g in points.values())
        assert beaten == (name not in front), name


def test_gains_are_compared_at_a_step_that_all_reached_and_count_from_the_base():
    losses = {"small": [(0, 3.2), (10, 2.95)], "large": [(0, 3.0), (10, 2.5)], "waste": [(0, 3.0), (10, 2.8)]}
    rows = [(name, step, "held_out/text/loss", x) for name, path in losses.items() for step, x in path]
    curves = make_curves([*rows, ("lost", 0, "held_out/text/loss", 3.0)])
    gains = gains_at(curves, SELECTION, "text", 10, 3.0)
    assert gains == pytest.approx({"small": 0.05, "large": 0.5, "waste": 0.2})


def test_the_survivors_are_trained_again_and_then_the_front_beside_them():
    gains = {"small": 0.05, "large": 0.5, "waste": 0.2}
    assert finalists(SELECTION, gains, 3) == ["small", "large"]  # "waste" is larger and gains less
    assert finalists(SELECTION, gains, 1) == ["small"]


def test_what_was_selected_on_and_what_is_fresh_are_kept_apart():
    rows = search()["configurations"]
    assert rows["large"]["selection"]["gain"] == pytest.approx(0.5)
    assert rows["large"]["fresh"]["gain"]["mean"] == pytest.approx(0.8)
    assert rows["small"]["fresh"]["gain"]["mean"] == pytest.approx(0.2)
    assert rows["small"]["fresh"]["per_parameter"]["mean"] == pytest.approx(0.002)
    assert rows["small"]["fresh"]["gain"]["low"] < 0.2 < rows["small"]["fresh"]["gain"]["high"]
    assert rows["small"]["fresh"]["seeds"] == [1, 2]
    assert rows["waste"]["fresh"] is None
    assert [rows[name]["ended"] for name in SELECTION] == ["complete", "pruned", "pruned", "diverged"]
    assert [rows[name]["steps"] for name in SELECTION] == [40, 10, 10, 7]


def test_front_and_budgets_are_of_the_fresh_gains():
    account = search()
    assert account["front"] == ["small", "large"]
    assert account["budgets"] == [{"budget": 1e3, "best": "small"}, {"budget": 1e4, "best": "large"}]


def test_a_finalist_that_diverged_is_neither_on_the_front_nor_the_best():
    account = search(fresh=FRESH | {"large2": run("large", None, 10_000, 2)})
    assert account["front"] == ["small"]
    assert {one["best"] for one in account["budgets"]} == {"small"}
    assert math.isnan(account["configurations"]["large"]["fresh"]["gain"]["mean"])


def test_the_finalists_come_first_and_then_who_came_furthest():
    assert [name for name, _ in ordered(search())] == ["large", "small", "waste", "lost"]


def test_table_and_page_tell_what_is_an_estimate(tmp_path: Path):
    account, out = search(), io.StringIO()
    print_search(account, Console(file=out, width=200))
    assert "0.800 [0.800, 0.800]" in out.getvalue()
    assert "2 finalists were trained again with 2 other seeds" in " ".join(out.getvalue().split())
    page = write_search(tmp_path, account, {"seeds": [1, 2]}, "a: 1\n", question="Which?").read_text()
    assert all(said in page for said in SAID.values())
    assert "nan" not in page.partition("<h2>Provenance")[0].replace(page[page.index("data:") : page.index('" alt')], "")
    assert all(sentence.partition(";")[0] in page for sentence in sentences(account))
    assert (tmp_path / "figures" / "front.png").stat().st_size > 0


def test_a_search_without_finalists_has_a_page_too(tmp_path: Path):
    account = search(fresh={})
    assert account["front"] == account["budgets"] == []
    page = write_search(tmp_path, account, {}, "", question="Which?").read_text()
    assert "none of which was trained again" in page
