"""The study of loss landscapes, whole: a real process on a tiny base."""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from adaptlab.report import load_curves
from adaptlab.report.curves import series
from tests.report.landscape.test_page import fetched
from tests.study.conftest import finish

SMALL = [
    *("~domain@targets.near", "seeds=[0]", "multiples=[1,3]", "twins=[far_full]", "replication.how=alone"),
    *("arms.full_no_warmup.targets=[]", "arms.lora_no_warmup.targets=[]", "arms.from_scratch.targets=[]"),
    *("measure.trajectories=[full]", "measure.grid=3", "measure.line_points=3", "training.duration.steps=6"),
]
FEW = ["measure.planes=[models]", "measure.spectra=false"]
ALL = ["measure.rows=1", "measure.eigenpairs=1", "measure.probes=2", "measure.nodes=3"]


def _of_targets(override: str) -> str:
    """The session's overrides name the target of a study with one."""
    return override.replace("domain@target=", "domain@targets.far=").replace("target.path=", "targets.far.path=")


def run(cwd: Path, overrides: list[str], quick: dict[str, str]) -> Path:
    finish([*map(_of_targets, overrides), *SMALL], cwd, quick, "loss_landscape")
    (report,) = cwd.glob("runs/loss_landscape/*/report.html")
    return report.parent


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, overrides: list[str], quick: dict[str, str]) -> Path:
    return run(tmp_path_factory.mktemp("loss_landscape"), [*overrides, *FEW], quick)


def test_lines_end_where_runs_were_measured_at_their_start_and_end(study: Path):
    runs, curves = json.loads((study / "runs.json").read_text()), load_curves(study / "curves.parquet")
    assert {run["method"] for run in runs.values()} == {"far_full", "far_lora"}
    for run, about in runs.items():
        line = json.loads((study / "runs" / run / "line.json").read_text())
        for domain, losses in line["loss"].items():
            name = "target" if domain == about["target"] else domain
            measured = series(curves, run, f"held_out/{name}/loss").values_N
            assert [losses[0], losses[-1]] == pytest.approx([measured[0], measured[-1]], rel=1e-5), (run, domain)


def test_a_small_update_forgets_what_the_forecast_says(study: Path):
    runs = json.loads((study / "summary.json").read_text())["runs"]
    small = min(runs.values(), key=lambda run: run["distance"])
    assert small["forecast"] == pytest.approx(small["forgetting"], rel=0.1)
    assert abs(small["forecast"] - small["forgetting"]) < abs(small["slope"] - small["forgetting"])


def test_the_surface_holds_the_losses_of_the_models_it_goes_through(study: Path):
    surface = json.loads((study / "landscape.json").read_text())["surfaces"]["models"]
    assert [*surface["marks"]] == ["base", "far_full", "far_lora"]
    way = np.array(surface["paths"]["far_full"])
    assert way[0] == pytest.approx([0, 0], abs=1e-6)
    assert way[-1] == pytest.approx(surface["marks"]["far_full"], abs=1e-4)
    assert surface["inside"]["far_full"] == pytest.approx(1, abs=1e-4)


def test_twins_differ_and_what_lies_between_them_is_measured(study: Path):
    pairs = json.loads((study / "summary.json").read_text())["pairs"]
    assert [*pairs] == ["far_full"]
    assert pairs["far_full"]["twin_distance"]["mean"] > 0


def test_the_report_has_figures_verdicts_and_fetches_nothing(study: Path):
    page = (study / "report.html").read_text()
    for name in ("contours_of_models", "surface_of_models", "lines", "twins", "barriers", "directions", "forecasts"):
        assert f'<figure id="{name}">' in page
        assert (study / "figures" / f"{name}.png").stat().st_size > 0
    assert all(source.startswith("data:") for source in fetched(page))
    verdicts = json.loads((study / "verdicts.json").read_text())["claims"]
    assert verdicts["two_fine_tunings_connect"]["verdict"] == "inconclusive"  # one seed


@pytest.mark.slow
def test_all_planes_and_spectra_are_measured_and_a_second_start_finds_them(
    tmp_path: Path, overrides: list[str], quick: dict[str, str]
):
    study = run(tmp_path, [*overrides, *ALL], quick)
    landscape = json.loads((study / "landscape.json").read_text())
    assert [*landscape["surfaces"]] == ["models", "random", "sharpest"]
    summary = json.loads((study / "summary.json").read_text())
    sharpest, plane = summary["spectra"]["base, on upstream text"], landscape["surfaces"]["sharpest"]
    said = float(re.findall(r"λ = ([-+.\de]+)", plane["x_label"])[0])
    assert said == pytest.approx(sharpest["eigenvalues"][0], rel=0.02)  # found by two computations
    middle = {domain: losses[1][1] for domain, losses in plane["loss"].items()}
    line = json.loads((study / "runs" / "far_full" / "lr_0.001" / "seed_0" / "line.json").read_text())
    assert middle == pytest.approx({domain: losses[0] for domain, losses in line["loss"].items()}, rel=1e-5)
    kept = [*study.glob("surfaces/*.json"), *study.glob("spectra/*.json"), *study.glob("runs/**/*line.json")]
    before = {path: path.stat().st_mtime_ns for path in kept}
    assert len(before) == 3 + 4 + 4 + 1
    (study / "done.json").unlink()
    run(tmp_path, [*overrides, *ALL], quick)
    assert {path: path.stat().st_mtime_ns for path in before} == before
