"""Runs that should be the same: how their distance is measured, and what is made of it."""

import json
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from adaptlab import config
from adaptlab.report import expectation, from_journals, load_curves, read_journal, summarise_numerics, write_numerics
from adaptlab.report.sink import Row
from adaptlab.study import check_devices, kept_updates, make_arms, part_of_devices
from experiments.numerics import Study
from tests.study.conftest import finish, start, tiny_base

NODE = config.validate(config.compose("numerics"), schema=Study)
RECIPE = Study(**NODE).recipe()


def test_the_distance_sees_what_float32_would_round_away(tmp_path: Path):
    a, b = np.eye(3, 2, dtype=np.float32), np.eye(2, 4, dtype=np.float32)
    kept_updates.save(tmp_path / "path" / "4.npz", {"one/kernel": (a, b), "two/kernel": (np.zeros((2, 2)),)})
    reference = kept_updates.load(tmp_path / "path" / "4.npz")
    assert {path: x.dtype for path, x in reference.items()} == dict.fromkeys(reference, np.float64)
    assert kept_updates.apart(reference, reference) == 0
    moved = kept_updates.dense({"one/kernel": (a, b), "two/kernel": (np.full((2, 2), 1e-12),)})
    assert kept_updates.apart(moved, reference) == pytest.approx(2e-12 / math.sqrt(2), rel=1e-9)
    assert math.isnan(kept_updates.apart(reference, {path: 0 * x for path, x in reference.items()}))
    with pytest.raises(ValueError, match="two/kernel"):
        kept_updates.apart({"one/kernel": moved["one/kernel"]}, reference)


def test_a_mesh_takes_the_devices_in_the_order_it_is_told():
    devices = jax.devices()
    assert list(part_of_devices(data=4, order="reversed").devices.flat) == devices[:4][::-1]
    assert list(part_of_devices(data=2, tensor=2, order="interleaved").devices.flat) == [
        devices[i] for i in (0, 2, 1, 3)
    ]
    assert part_of_devices().devices.size == 1


def test_more_devices_than_there_are_is_refused_with_the_variable_that_makes_them():
    with pytest.raises(ValueError, match="XLA_FLAGS=--xla_force_host_platform_device_count=16"):
        part_of_devices(data=16)
    arms = make_arms(RECIPE, {"large": {"mesh": {"data": 8, "tensor": 2}}}, [0])
    with pytest.raises(ValueError, match=r"arms\.large.*16"):
        check_devices(arms)
    check_devices(make_arms(RECIPE, NODE["arms"], [0]))


def test_an_arm_is_the_recipe_but_for_what_it_says():
    reference, half, other = make_arms(
        RECIPE, {"half": {"base": {"model": {"dtype": "bfloat16"}}}, "other": {"optim": {"lr": 1.0}}}, [3, 5]
    )
    assert (reference.base["model"]["dtype"], half.base["model"]["dtype"]) == ("float32", "bfloat16")
    assert half.mesh == reference.mesh
    assert [member.name for member in other.members] == ["other/lr_1/seed_3", "other/lr_1/seed_5"]
    for arms, said in (({"reference": {}}, "another name"), ({"odd": {"training": {}}}, "training")):
        with pytest.raises(config.ConfigError, match=said):
            make_arms(RECIPE, arms, [0])


def planted(growth: float, start: float, seeds: int = 3) -> tuple[Any, dict[str, Any]]:
    """A reference; an arm whose distance grows like e^(λ s); and one that keeps the reference's bits."""
    journals, results = {}, {}
    for seed in range(seeds):
        for arm in ("reference", "apart", "same"):
            moved, rows = arm == "apart", []
            for step in range(0, 9, 2):
                distance = start * math.exp(growth * step) * (1 + 0.01 * seed) if moved else 0.0
                metrics = {"held_out/text/loss": 2.0 * (1 + distance), "train/loss": 2.0 + (moved and step > 2)}
                rows.append(Row(step, metrics | ({"parting/update": distance} if step and arm != "reference" else {})))
            run = f"{arm}/lr_1/seed_{seed}"
            journals[run] = rows
            results[run] = {"method": arm, "seed": seed, "lr": 1.0, "delta_digest": f"{moved}{seed}"}
            results[run] |= {"mesh": {"data": 8} if moved else {}}
    return from_journals(journals), results


APART = {step: [1.0, 1.2, 0.8] for step in (2, 4, 6, 8)}


def summary(growth: float = 0.5, start: float = 1e-6, **expectations: Any) -> dict[str, Any]:
    curves, results = planted(growth, start)
    return summarise_numerics(curves, results, APART, expectations, target="text")


@pytest.mark.parametrize("growth", [0.5, -0.25])
def test_growth_is_the_exponent_of_an_exponential(growth: float):
    arm = summary(growth)["arms"]["apart"]
    assert arm["growth"]["mean"] == pytest.approx(growth, rel=1e-9)
    assert arm["update"]["mean"] == pytest.approx(1e-6 * math.exp(8 * growth) * 1.01, rel=1e-9)
    assert arm["ratio"]["mean"] == pytest.approx(arm["update"]["mean"] / 1.0, rel=1e-9)
    assert arm["loss"]["mean"] == pytest.approx(arm["update"]["mean"], rel=1e-6)
    assert arm["first_step_apart"] == [4, 4, 4]


def test_arms_that_end_in_the_same_bits_as_one_another_are_named():
    curves, results = planted(0.5, 1e-6)
    twin = {
        name.replace("apart", "twin"): r | {"method": "twin"} for name, r in results.items() if r["method"] == "apart"
    }
    rows = {run: read_rows(curves, run.replace("twin", "apart")) for run in [*results, *twin]}
    found = summarise_numerics(from_journals(rows), results | twin, APART, {}, target="text")
    assert found["alike"] == [["apart", "twin"]]


def read_rows(curves: Any, run: str) -> list[Row]:
    """The rows of one run of a table of curves."""
    own = [row for row in curves.to_pylist() if row["run"] == run]
    steps = sorted({row["step"] for row in own})
    return [Row(step, {row["metric"]: row["value"] for row in own if row["step"] == step}) for step in steps]


def test_runs_of_the_same_bits_are_said_to_be_the_same_and_have_no_growth():
    arm = summary()["arms"]["same"]
    assert arm["same_bits"]
    assert arm["update"]["mean"] == 0
    assert math.isnan(arm["growth"]["mean"])


@pytest.mark.parametrize(
    ("arms", "quantity", "region", "verdict"),
    [
        (["apart", "same"], "ratio", {"ceiling": 0.01}, "supported"),
        (["apart"], "ratio", {"margin": 0.01}, "contradicted"),
        (["apart"], "growth", {"margin": 0.0}, "supported"),
        (["apart", "same"], "growth", {"margin": 0.0}, "inconclusive"),
        (["apart", "absent"], "ratio", {"ceiling": 0.01}, "inconclusive"),
    ],
)
def test_an_expectation_is_judged_by_all_its_arms(arms, quantity: str, region: dict[str, float], verdict: str):
    said = summary(one=expectation("…", arms, quantity, **region))["expectations"]["one"]
    assert said["verdict"] == verdict


def test_an_expectation_without_a_region_or_of_nothing_known_is_refused():
    for given, said in ((("ratio", {}), "margin"), (("speed", {"margin": 0.0}), "speed")):
        with pytest.raises(ValueError, match=said):
            expectation("…", ["apart"], given[0], **given[1])


def test_the_page_shows_every_arm_and_names_those_of_the_same_bits(tmp_path: Path):
    curves, results = planted(0.5, 1e-6)
    found = summary(one=expectation("It stays small.", ["apart"], "ratio", ceiling=0.01))
    page = write_numerics(tmp_path, curves, results, found, {}, "seeds: []", question="How far?").read_text()
    assert "at every step and seed: same." in page
    assert "<b>supported</b>: It stays small." in page
    assert {path.name for path in (tmp_path / "figures").iterdir()} >= {"update.png", "loss.svg"}
    assert json.loads((tmp_path / "summary.json").read_text())["arms"].keys() == {"apart", "same"}
    assert load_curves(tmp_path / "curves.parquet").num_rows == curves.num_rows


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The study in small: a random base and the repository's own text."""
    base = tiny_base(tmp_path_factory.mktemp("base"))
    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_text(
        "\n\n".join(path.read_text() for path in sorted((Path(__file__).parents[2] / "adaptlab").glob("*.py")))
    )
    arms = [f"~arms.{name}" for name in NODE["arms"] if name not in ("data", "bfloat16", "matmul_bfloat16")]
    sizes = ["duration.steps=6", "batch_size=8", "length=32", "measure_every=2", "save_every=2"]
    return [
        *("base=local", f"base.weights.path={base}", "domain@target=text", f"target.path={text}", *arms),
        *(f"training.{size}" for size in sizes),
        *("seeds=[0,1]", "held_out.tokens=256", "wandb.mode=disabled", "hydra.run.dir=study"),
    ]


@pytest.mark.slow
def test_a_study_on_eight_devices_resumes_and_its_meshes_part_only_by_rounding(
    overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    environment = {k: v for k, v in environment.items() if k not in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES")}
    (tmp_path / "killed").mkdir()
    process = start(overrides, tmp_path / "killed", environment, "numerics")
    while not list(tmp_path.glob("killed/study/runs/data/*/*/result.json")) and process.poll() is None:
        time.sleep(0.05)
    process.kill()
    process.communicate()
    for name in ("killed", "whole"):
        (tmp_path / name).mkdir(exist_ok=True)
        finish(overrides, tmp_path / name, environment, "numerics")
    found = json.loads((tmp_path / "whole/study/summary.json").read_text())["arms"]
    assert found.keys() == {"data", "bfloat16", "matmul_bfloat16"}
    assert found["data"]["mesh"] == {"data": 8}
    assert all(end < 1e-3 for end in found["data"]["by_seed"]["update"])
    assert found["matmul_bfloat16"]["same_bits"]  # XLA's CPU backend has no other products than float32's
    assert min(found["bfloat16"]["by_seed"]["update"]) > 10 * max(found["data"]["by_seed"]["update"])
    journals = sorted((tmp_path / "whole/study").glob("runs/**/journal.jsonl"))
    assert len(journals) == 8
    for journal in journals:
        other = tmp_path / "killed" / journal.relative_to(tmp_path / "whole")
        assert read_journal(other) == read_journal(journal)
