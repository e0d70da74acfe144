"""A ladder follows from its dials; what is predicted is sealed before it is run; a killed study goes on."""

import dataclasses
import hashlib
import json
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from adaptlab import config, tree
from adaptlab.models import llama
from adaptlab.report.ladder.claims import pooled, rank_with_forgetting
from adaptlab.report.outcomes import Outcome, Outcomes
from adaptlab.report.trajectory import make_trajectory
from adaptlab.study.folder import StudyError
from adaptlab.study.ladder.laws import law
from adaptlab.study.ladder.plan import LadderPlan, plan_ladder
from adaptlab.study.ladder.points import effective_data, with_transfer
from adaptlab.study.ladder.predictions import make_predictions, score, seal
from adaptlab.study.ladder.runs import keep_bases
from adaptlab.study.ladder.sizes import budget, ladder, rung
from experiments.scaling import Study
from tests.study.conftest import ROOT, finish, results, start


@pytest.fixture(scope="module")
def study() -> Study:
    return Study(**config.validate(config.compose("scaling"), schema=Study))


@pytest.fixture(scope="module")
def plan(study: Study) -> LadderPlan:
    return plan_ladder(study)


@pytest.mark.parametrize("experiment", [[], ["experiment=scaling_smoke"]])
def test_the_config_fits_its_schema_and_its_laws_find_their_columns(experiment: list[str]):
    complete = config.validate(config.compose("scaling", experiment), schema=Study)
    assert config.validate(complete, schema=Study) == complete
    rungs = complete["ladder"]["rungs"]
    assert all(node["where"].get("rung", rungs[0]) in rungs[:-1] for node in complete["laws"].values())
    config.instantiate(complete["laws"])
    config.instantiate(complete["claims"])


@pytest.mark.parametrize("dial", [1, 3])
def test_the_parameters_of_a_rung_are_those_its_model_has(dial: int):
    one = rung(dial)
    assert one.parameters == tree.count(jax.eval_shape(llama(one.shape).init, jax.random.key(0)))
    assert one.shape.width == 32 * one.shape.depth == 32 * dial


def test_the_diagonal_of_the_grid_follows_the_rule_of_tokens_per_parameter():
    made = ladder([1, 2, 4], ratio=20.0, length=128)
    for one, tokens in zip(made.rungs, made.budgets, strict=True):
        assert budget(one, tokens).tokens == pytest.approx(20 * one.parameters, rel=0.02)


def test_the_batch_grows_with_the_tokens_alone_and_the_rate_falls_with_the_width():
    small, large = budget(rung(2), 2**19), budget(rung(8), 2**19)
    assert (small.batch_size, small.lr) == (2, pytest.approx(0.256 / 64))  # 256 tokens at half a million
    assert large.batch_size == small.batch_size
    assert large.lr == pytest.approx(small.lr / 4)
    longer = budget(rung(2), 2**29)
    assert longer.batch_size / small.batch_size == pytest.approx(1024**0.383, rel=0.05)
    assert small.steps * small.batch_size * 128 == small.tokens


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rungs": [1, 2]}, "at least three increasing"),
        ({"rungs": [1, 3, 2]}, "increasing"),
        ({"budgets": 9}, "1 to 5"),
    ],
)
def test_a_ladder_that_cannot_be_says_so_when_it_is_made(arguments: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        ladder(**arguments)


def test_the_largest_rung_runs_the_most_of_everything_once(plan: LadderPlan):
    largest = plan.ladder.largest
    assert [cell.tokens for cell in plan.pretraining[largest]] == pytest.approx([plan.ladder.budgets[-1]], rel=0.05)
    smaller = {cell.unique_tokens for cell in plan.adaptations[plan.ladder.rungs[0]] if cell.family == "full"}
    assert {cell.unique_tokens for cell in plan.adaptations[largest] if cell.family == "full"} == {max(smaller)}


def test_rates_of_adaptation_are_multiples_of_the_rate_of_pretraining(study: Study, plan: LadderPlan):
    for one in (plan.ladder.rungs[0], plan.ladder.largest):
        (own,) = {cell.method["optim"]["lr"] for cell in plan.pretraining[one]}
        for cell in plan.adaptations[one]:
            assert cell.method["optim"]["lr"] == pytest.approx(study.methods[cell.family]["multiple"] * own)


@pytest.mark.parametrize("multiple", [None, 0, "fast"])
def test_a_method_without_a_positive_multiple_is_refused_before_anything_loads(study: Study, multiple: Any):
    methods = study.methods | {"full": {"multiple": multiple}}
    with pytest.raises(config.ConfigError, match=rf"methods\.full\.multiple={multiple}: expected a positive number"):
        plan_ladder(dataclasses.replace(study, methods=methods))


def test_all_ranks_of_a_method_are_one_program(plan: LadderPlan):
    skeletons = {
        json.dumps(config.split(cell.method)[0])
        for cell in plan.adaptations[plan.ladder.largest]
        if cell.rank is not None
    }
    assert len(skeletons) == 1


def test_effective_data_is_read_off_the_curve_from_scratch_and_says_where_it_ends():
    scratch = {1e3: 4.0, 1e4: 4.1, 1e5: 2.0}  # a larger amount that did worse is noise
    assert effective_data(scratch, 2.0).value == pytest.approx(1e5)
    middle = effective_data(scratch, np.sqrt(8.0)).value
    assert middle == pytest.approx(np.sqrt(1e4 * 1e5), rel=1e-6)
    assert effective_data(scratch, 2.0).bound == ""
    assert effective_data(scratch, 1.5)[:2] == (1e5, "at least")
    assert effective_data(scratch, 5.0)[:2] == (1e3, "at most")


def test_transfer_is_counted_against_the_same_rung_and_seed():
    def run(family: str, seed: int, tokens: int, loss: float) -> dict[str, Any]:
        return {"family": family, "rung": 1, "seed": seed, "unique_tokens": tokens, "target_loss": loss}

    runs = {f"s{s}{d}": run("scratch", s, d, 4.0 / (1 + s) * d**-0.1) for s in (0, 1) for d in (1000, 100_000)}
    runs["full"] = run("full", 1, 1000, 2.0 * 10_000**-0.1)
    found = with_transfer(runs)["full"]
    assert found["effective_data"] == pytest.approx(10_000, rel=1e-6)
    assert found["data_transferred"] == pytest.approx(9000, rel=1e-6)


def _homes(folder: Path) -> list[Path]:
    return [folder / "runs" / "large" / f"seed_{seed}" for seed in (0, 1)]


def _made() -> dict[str, Any]:
    row = {"law": "l", "cell": "large", "y": "target_loss", "inputs": {}, "value": 2.0, "low": 1.9, "high": 2.2}
    return {"predictions": [row]}


def test_the_seal_stands_in_every_predicted_run_before_it_begins(tmp_path: Path):
    digest = seal(tmp_path, _homes(tmp_path), _made)
    assert digest == hashlib.sha256((tmp_path / "predictions.json").read_bytes()).hexdigest()
    for home in _homes(tmp_path):
        assert json.loads((home / "prediction.json").read_text())["sha256"] == digest
        assert not (home / "journal.jsonl").exists()


def test_what_has_begun_cannot_be_predicted(tmp_path: Path):
    home = _homes(tmp_path)[1]
    home.mkdir(parents=True)
    (home / "journal.jsonl").write_text("{}\n")
    with pytest.raises(StudyError, match=r"has begun, but .* no sealed"):
        seal(tmp_path, _homes(tmp_path), _made)


def test_a_changed_prediction_is_detected_wherever_the_change_is_hidden(tmp_path: Path):
    homes = _homes(tmp_path)
    digest = seal(tmp_path, homes, _made)
    assert seal(tmp_path, homes, dict) == digest  # a resumed study makes no others
    path = tmp_path / "predictions.json"
    path.write_text(path.read_text().replace("2.2", "2.3"))
    with pytest.raises(StudyError, match=r"changed after it was\s+sealed"):
        seal(tmp_path, homes, _made)
    (tmp_path / "predictions.sha256").write_text(hashlib.sha256(path.read_bytes()).hexdigest())
    with pytest.raises(StudyError, match=r"prediction\.json says"):
        score(tmp_path, digest, {"large/seed_0": {"split": "largest", "method": "large", "target_loss": 2.0}})


def test_predictions_are_scored_by_where_the_runs_came_to_lie(tmp_path: Path):
    digest = seal(tmp_path, _homes(tmp_path), _made)
    runs = {
        f"large/seed_{s}": {"split": "largest", "method": "large", "target_loss": y} for s, y in ((0, 2.1), (1, 2.3))
    }
    (row,) = score(tmp_path, digest, runs)
    assert row["inside"]
    assert row["runs_inside"] == 1
    assert row["relative_error"] == pytest.approx(0.1)
    assert row["room"]["large/seed_0"] > 0 > row["room"]["large/seed_1"]


def test_a_planted_law_of_the_smaller_rungs_predicts_the_largest(plan: LadderPlan, tmp_path: Path):
    """Of y = 2 + 30 N^-0.2 D^-0.1 with 0.5% noise, in 36 runs; the interval is for a new run with its noise."""
    rng = np.random.default_rng(0)
    rows: list[dict[str, Any]] = []

    def loss(parameters: float, tokens: float) -> float:
        return 2 + 30 * parameters**-0.2 * tokens**-0.1

    for one in plan.ladder.rungs[:-1]:
        for cell in plan.adaptations[one]:
            if cell.family == "full":
                y = [loss(one.parameters, cell.unique_tokens) * np.exp(0.005 * rng.standard_normal()) for _ in range(3)]
                about = cell.about(plan.ladder.largest)
                rows += [{"run": f"{cell.name}{s}", "seed": s, **about, "target_loss": y[s]} for s in range(3)]
    (tmp_path / "points.csv").write_text("")
    form = config.instantiate({"_target_": "adaptlab.scaling.forms.joint"})
    wanted = law(form, {"family": "full"}, {"X": "parameters", "D": "unique_tokens"}, "target_loss", predicts=True)
    said = make_predictions({"full": wanted}, plan, rows, tmp_path / "points.csv", level=0.95, draws=20)
    (row,) = said["predictions"]
    true = loss(plan.ladder.largest.parameters, row["inputs"]["D"])
    assert row["cell"].startswith(f"{plan.ladder.largest.name}_full")
    assert row["low"] < true < row["high"]
    assert row["value"] == pytest.approx(true, rel=0.02)


def test_a_kept_base_takes_the_place_of_another_one_which_stays_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ADAPTLAB_CACHE", str(tmp_path / "cache"))

    def study(weights: bytes) -> Path:
        made = tmp_path / weights.decode() / "bases" / "n1"
        made.mkdir(parents=True)
        (made / "model.safetensors").write_bytes(weights)
        return made.parents[1]

    first, second = study(b"first"), study(b"second")
    for folder in (first, first, second):
        home = keep_bases(folder, [rung(1)])
    aside = f"n1_{hashlib.sha256(b'first').hexdigest()[:8]}"
    assert {p.name for p in home.iterdir()} == {"n1", aside}
    assert (home / "n1" / "model" / "model.safetensors").read_bytes() == b"second"
    assert (home / aside / "model" / "model.safetensors").read_bytes() == b"first"


def _outcomes(numbers: dict[str, dict[int, dict[str, float]]], forgot: dict[str, float]) -> Outcomes:
    """Runs of one learning rate with what was measured of them, and how much each method forgot."""
    steps, found = np.array([0, 10]), {}
    for method, seeds in numbers.items():
        loss = {"target": np.array([5.0, 4.0]), "old": np.array([3.0, 3.0 + forgot[method]])}
        path = make_trajectory(steps, loss, "target")
        found[method] = {1e-3: {s: Outcome(f"{method}/{s}", path, 10, False, one) for s, one in seeds.items()}}
    return found


def test_a_pooled_effect_is_the_mean_over_matching_runs_and_a_bound_where_any_run_is_one():
    runs = {
        "n1_full_1k": {0: {"worth": 10.0, "bounded": 0.0}, 1: {"worth": 20.0, "bounded": 1.0}},
        "n2_full_1k": {0: {"worth": 30.0, "bounded": 0.0}, 1: {"worth": 40.0, "bounded": 0.0}},
        "n2_lora_1k": {0: {"worth": 999.0}, 1: {"worth": 999.0}},
    }
    sample = pooled("worth", r"n\d+_full_.*", bound="bounded").measure(_outcomes(runs, dict.fromkeys(runs, 0.1)))
    assert {seed: one.value for seed, one in sample.arm.items()} == {0: 20.0, 1: 30.0}
    assert {seed: one.bound for seed, one in sample.arm.items()} == {0: "", 1: "at least"}
    assert {one.value for one in sample.against.values()} == {0.0}


def test_forgetting_that_grows_with_tuned_parameters_has_a_rank_correlation_of_one():
    runs = {name: {0: {"tuned": tuned}} for name, tuned in (("a", 1.0), ("b", 10.0), ("c", 100.0))}
    grows = rank_with_forgetting("tuned", "[abc]").measure(_outcomes(runs, {"a": 0.1, "b": 0.2, "c": 0.9}))
    falls = rank_with_forgetting("tuned", "[abc]").measure(_outcomes(runs, {"a": 0.9, "b": 0.2, "c": 0.1}))
    assert (grows.arm[0].value, falls.arm[0].value) == pytest.approx((1.0, -1.0))
    none = rank_with_forgetting("tuned", "[xyz]").measure(_outcomes(runs, dict.fromkeys("abc", 0.0)))
    assert none.arm == {}
    assert "no method matches" in none.notes[0]


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides that make `experiments.scaling` a matter of seconds."""
    text = tmp_path_factory.mktemp("text")
    for name in ("adapt", "train", "optim"):
        files = sorted((ROOT / "adaptlab" / name).glob("*.py"))
        (text / f"{name}.txt").write_text("\n\n".join(p.read_text() for p in files))
    return [
        "~domain@domains.python_source",
        *(f"domain@domains.{name}=text" for name in ("english_news", "english_speeches")),
        f"domains.english_news.path={text / 'adapt.txt'}",
        f"domains.english_speeches.path={text / 'train.txt'}",
        "domain@target=text",
        f"target.path={text / 'optim.txt'}",
        "ladder={rungs:[1,2,3],aspect:8,vocab_size:300,ratio:0.3,budgets:2,length:32}",
        "pretraining.measurements=2",
        "~methods.lora",
        "methods.scratch.sizes=[128,256]",
        "sizes=[128,256]",
        "seeds=[0,1]",
        *(f"~laws.{name}" for name in ("lora_r1", "lora_r16", "rank", "forgetting", "scratch")),
        "laws.pretraining.form._target_=adaptlab.scaling.forms.joint",
        *("~laws.pretraining.x.N", "+laws.pretraining.x.X=parameters"),
        "draws=20",
        "training={duration:{steps:8},length:32,measure_every:4}",
        "held_out.tokens=256",
        "wandb.mode=disabled",
    ]


@pytest.fixture(scope="module")
def interrupted(
    overrides: list[str], quick: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A study that was killed as soon as its largest rung had begun, and what lay there then; then finished."""
    cwd = tmp_path_factory.mktemp("scaling")
    process = start(overrides, cwd, quick, "scaling")
    while process.poll() is None and not [*cwd.glob("runs/scaling/*/runs/n3_*/*/*/journal.jsonl")]:
        time.sleep(0.02)
    process.kill()
    output, _ = process.communicate()
    journals = [*cwd.glob("runs/scaling/*/runs/n3_*/*/*/journal.jsonl")]
    assert journals, output
    folder = next(cwd.glob("runs/scaling/*"))
    there = {
        "predictions": (folder / "predictions.json").read_bytes(),
        "sha256": (folder / "predictions.sha256").read_text().strip(),
        "records": [json.loads((p.parent / "prediction.json").read_text())["sha256"] for p in journals],
        "finished": {p: p.stat().st_mtime_ns for p in folder.glob("runs/n[12]_*/*/*/result.json")},
    }
    there["output"] = finish(overrides, cwd, quick, "scaling")
    return folder, there


@pytest.mark.slow
def test_the_prediction_is_complete_and_sealed_before_the_largest_run_has_a_line(
    interrupted: tuple[Path, dict[str, Any]],
):
    folder, there = interrupted
    assert hashlib.sha256(there["predictions"]).hexdigest() == there["sha256"]
    assert {*there["records"]} == {there["sha256"]}
    cells = {row["cell"] for row in json.loads(there["predictions"])["predictions"]}
    assert {cell.rsplit("_", 1)[0] for cell in cells} == {"n3_pretraining", "n3_full"}
    assert (folder / "predictions.json").read_bytes() == there["predictions"]  # a resumed study makes no others
    assert json.loads((folder / "passport.json").read_text())["predictions"]["sha256"] == there["sha256"]


@pytest.mark.slow
def test_a_resumed_ladder_runs_nothing_twice_and_finishes_all(interrupted: tuple[Path, dict[str, Any]]):
    folder, there = interrupted
    assert there["finished"]
    assert {p: p.stat().st_mtime_ns for p in there["finished"]} == there["finished"]
    # Two budgets, two amounts for each of two methods, two seeds; the largest rung has one of each.
    assert len(results(folder)) == 2 * (2 * (2 + 4) + 3)


@pytest.mark.slow
def test_pretraining_of_all_seeds_starts_at_random_weights_of_their_own_and_learns(
    interrupted: tuple[Path, dict[str, Any]],
):
    folder, _ = interrupted
    runs = json.loads((folder / "runs.json").read_text())
    digests = {run["delta_digest"] for run in runs.values()}
    assert len(digests) == len(runs)
    for name, run in runs.items():
        if run["family"] in (
            "pretraining",
            "scratch",
        ):  # logits of unit variance: about ln V + 1/2, no better than chance
            assert np.log(300) < run["base_upstream_loss"] < np.log(300) + 1, name
    tuned = [run for run in runs.values() if run["family"] == "full"]
    assert all(run["base_upstream_loss"] < np.log(300) - 0.05 for run in tuned)  # they start at their base


@pytest.mark.slow
def test_the_points_are_read_by_the_command_that_fits_laws(interrupted: tuple[Path, dict[str, Any]]):
    from adaptlab.report.scaling.inputs import load_rows

    folder, _ = interrupted
    for name in ("points.csv", "points.parquet"):
        table = load_rows(str(folder / name))
        assert table.n == 2 * (2 * (2 + 4) + 3)
        assert {"parameters", "unique_tokens", "tokens", "upstream_loss"} <= {*table.columns}


@pytest.mark.slow
def test_the_page_shows_predictions_and_verdicts_and_bases_are_kept(
    interrupted: tuple[Path, dict[str, Any]], environment: dict[str, str]
):
    folder, there = interrupted
    page, summary = (folder / "report.html").read_text(), json.loads((folder / "summary.json").read_text())
    assert there["sha256"] in page
    assert '<figure id="predictions">' in page
    assert {*summary["verdicts"]["claims"]} == {*config.compose("scaling")["claims"]}
    assert (Path(environment["ADAPTLAB_CACHE"]) / "bases" / "ladder" / "n3" / "model" / "config.json").exists()
