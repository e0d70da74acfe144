import base64
import html.parser
import json
import os
import re
import subprocess
import sys

import pytest

from adaptlab.report.claims import claim, judge
from adaptlab.report.curves import load_curves
from adaptlab.report.draw import draw
from adaptlab.report.effects import difference
from adaptlab.report.html import render_html
from adaptlab.report.quantities import forgetting_at_gain
from adaptlab.report.study import write_report
from tests.report.conftest import TARGET, UPSTREAM

PASSPORT = {
    "code": {"commit": "0123abcd", "dirty": False},
    "base": {"sha256": "b179c952"},
    "times": {"started": "2026-01-02T03:04:05+00:00", "resumed": []},
}
VOID = {"meta", "img", "link", "br", "hr"}


@pytest.fixture(scope="module")
def study(make_study):
    return make_study(diverge=True)


@pytest.fixture(scope="module")
def page(study):
    curves, _, summary = study
    settings = {"Base": "a small model"}
    return render_html(summary, draw(curves, summary), PASSPORT, "optim:\n  rate: 0.1\n", settings=settings)


class _Page(html.parser.HTMLParser):
    """Checks nesting, and collects what a browser would fetch and what a reader would read."""

    def __init__(self):
        super().__init__()
        self.open, self.sources, self.tags, self.text = [], [], [], []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.sources += [value for name, value in attributes if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text.append(data)


def _parse(page):
    parsed = _Page()
    parsed.feed(page)
    assert parsed.open == []
    return parsed


def test_the_page_is_well_formed_and_fetches_nothing(page):
    parsed = _parse(page)
    assert len(parsed.sources) == 6
    assert all(source.startswith("data:image/svg+xml;base64,") for source in parsed.sources)
    assert not {"script", "link", "iframe"} & set(parsed.tags)
    assert not re.search(r"url\(|@import", page)


def test_embedded_figures_are_whole(page):
    for source in _parse(page).sources:
        svg = base64.b64decode(source.split(",", 1)[1])
        assert svg.rstrip().endswith(b"</svg>")


def test_the_page_holds_the_result_its_uncertainty_and_its_provenance(study, page):
    text = " ".join("".join(_parse(page).text).split())
    lora = study[2]["methods"]["lora"]["best_gain"]
    assert f"{lora['mean']:.3f} [{lora['low']:.3f}, {lora['high']:.3f}]" in text
    for part in ("n = 3 seeds", "full/lr=0.001/seed=0 diverged", "0123abcd", "b179c952", "rate: 0.1"):
        assert part in text
    assert "a small model" in text
    assert not re.search(r"\b(nan|None|inf)\b", text)


def test_many_differences_are_folded_away(make_study):
    def folded(**options):
        *_, summary = make_study(rates=(1e-3,), seeds=(0, 1), **options)
        page = render_html(summary, {}, PASSPORT, "")
        _parse(page)
        return "<summary>40 differences at equal gain" in page

    assert folded(methods=tuple("abcde"))  # 10 pairs at 4 gains
    assert not folded()


def test_one_seed_shows_no_interval(make_study):
    curves, _, summary = make_study(seeds=(0,), rates=(1e-3,))
    text = " ".join(_parse(render_html(summary, draw(curves, summary), PASSPORT, "")).text)
    assert "one seed: no interval" in text
    assert "One seed, so there are no intervals." in text
    assert "[" not in text


def test_resumes_are_told(study):
    passport = PASSPORT | {"times": {"resumed": ["2026-01-02T04:00:00+00:00"]}}
    assert "resumed 1 time (2026-01-02T04:00:00+00:00)" in render_html(study[2], {}, passport, "")


def test_text_from_outside_cannot_become_markup(study):
    evil = "<script>alert(1)</script>"
    page = render_html(study[2], {}, {"base": {"name": evil}}, evil, title=evil, settings={evil: evil})
    assert "<script" not in page
    assert page.count("&lt;script&gt;") == 6


def test_no_common_gain_still_makes_a_page(make_study):
    curves, _, summary = make_study()
    empty = {**summary, "comparisons": [], "equal_gain": {**summary["equal_gain"], "levels": []}}
    empty["groups"] = [{**row, "equal_gain": []} for row in summary["groups"]]
    empty["methods"] = {row["method"]: row for row in empty["groups"] if row["representative"]}
    text = " ".join(_parse(render_html(empty, draw(curves, empty), PASSPORT, "")).text)
    assert "the largest that all reached" not in text


def test_a_study_leaves_every_file_and_no_rubbish(study, tmp_path):
    curves, runs, summary = study
    report = write_report(tmp_path, curves, runs, summary, PASSPORT, "seed: 0\n", title="A title")
    assert sorted(os.listdir(tmp_path)) == [
        *["config.yaml", "curves.parquet", "figures", "passport.json", "report.html"],
        *["runs.json", "summary.json"],
    ]
    names = ("forgetting_curve", "gain_curve", "heat_maps", "learning_rates", "trade_off", "usable_zones")
    assert sorted(os.listdir(tmp_path / "figures")) == [f"{n}.{e}" for n in names for e in ("png", "svg")]
    assert "<h1>A title</h1>" in report.read_text()
    loaded = load_curves(tmp_path / "curves.parquet")  # (tables with nan are not equal to themselves)
    assert loaded["value"].to_numpy().tobytes() == curves["value"].to_numpy().tobytes()
    assert (tmp_path / "config.yaml").read_text() == "seed: 0\n"


def _verdicts(curves, runs):
    quantity, statement = forgetting_at_gain(0.9), "LoRA & co. forget less than <full> at equal gain."
    options = {"unit": "nats/token", "margin": 0.01, "min_seeds": 3}
    claims = {
        "lora": claim(statement, "a source", difference(quantity, "lora", "full", "lower"), **options),
        "other": claim("Another.", "a source", difference(quantity, "other", "full", "lower"), **options),
    }
    return judge(claims, curves, runs, TARGET, UPSTREAM)


def test_verdicts_stand_on_the_page_and_in_the_files(study, tmp_path):
    curves, runs, summary = study
    verdicts = _verdicts(curves, runs)
    report = write_report(tmp_path, curves, runs, summary, PASSPORT, "", verdicts=verdicts)
    text = " ".join("".join(_parse(report.read_text()).text).split())
    assert "2 claims were stated before the runs: " in text
    assert "; 1 could be tested." in text
    assert "LoRA & co. forget less than <full> at equal gain." in text
    assert f"{verdicts['lora'].effect.mean:+.3f} [" in text
    assert "other was not run; the study has full, lora" in text
    for name in ("verdicts", "summary"):
        read = json.loads((tmp_path / f"{name}.json").read_text())
        claims = (read if name == "verdicts" else read["verdicts"])["claims"]
        assert claims["lora"]["verdict"] == verdicts["lora"].verdict
        assert claims["other"]["verdict"] == "inconclusive"


def test_a_study_without_claims_has_no_section_of_them(page):
    assert "<h2" in page
    assert "Claims" not in page


def test_data_alone_is_written_without_matplotlib(study, tmp_path):
    curves, runs, summary = study
    path = write_report(tmp_path, curves, runs, summary, PASSPORT, "", figures=False)
    assert path == tmp_path / "summary.json"
    assert sorted(os.listdir(tmp_path)) == [
        *["config.yaml", "curves.parquet", "passport.json", "runs.json", "summary.json"],
    ]
    script = f"""
import json, sys
from pathlib import Path
from adaptlab import report
folder = Path({str(tmp_path)!r})
runs = json.loads((folder / "runs.json").read_text())
curves = report.load_curves(folder / "curves.parquet")
summary = report.summarise(curves, runs, {TARGET!r}, {UPSTREAM!r})
report.judge({{}}, curves, runs, {TARGET!r}, {UPSTREAM!r})
report.write_report(folder / "again", curves, runs, summary, {{}}, "", figures=False)
print([name for name in ("matplotlib", "jinja2") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr


def test_json_files_are_strict(study, tmp_path):
    write_report(tmp_path, *study, PASSPORT, "")

    def refuse(constant):
        raise AssertionError(constant)

    for name in ("summary", "runs", "passport"):
        json.loads((tmp_path / f"{name}.json").read_text(), parse_constant=refuse)
    summary = json.loads((tmp_path / "summary.json").read_text())
    diverged = next(row for row in summary["groups"] if row["diverged"])
    assert diverged["final_gain"]["mean"] is None


def test_writing_twice_gives_the_same_bits(study, tmp_path):
    for folder in ("1", "2"):
        write_report(tmp_path / folder, *study, PASSPORT, "")
    for path in sorted((tmp_path / "1").rglob("*.*")):
        assert path.read_bytes() == (tmp_path / "2" / path.relative_to(tmp_path / "1")).read_bytes(), path
