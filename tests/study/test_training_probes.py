"""What runs measure of themselves besides text; a path goes on where a killed run left it."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from adaptlab.adapt import full, lora
from adaptlab.leaf import dot
from adaptlab.measure import measured_path
from adaptlab.optim import adamw
from adaptlab.report import load_curves
from adaptlab.shard import Placement, make_mesh
from adaptlab.stats import Mean
from adaptlab.study.training_probes import TrainingProbes, probed, training_probes
from adaptlab.train import (
    Checkpoints,
    Fitted,
    Run,
    Work,
    alone,
    compile_replicas,
    course,
    fit_replicas,
    make_program,
    open_checkpoints,
)
from adaptlab.train.stopping import early_stopping
from tests.study.conftest import finish, results
from tests.study.test_resume import assert_same_curves, kill_when
from tests.train.toy import NOWHERE, Journal, Points, into, points

BASE = {"w": {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)}}
HERE = SingleDeviceSharding(jax.devices()[0])
WANTED = {"trajectory": {"_target_": "adaptlab.measure.weight_path"}, "drift": None}
LAB: Any = SimpleNamespace(probes=WANTED, placement=SimpleNamespace(replicated=HERE))


def squares(params: Any, batch: Points, key: jax.Array) -> Mean:
    error = jnp.sum(dot(batch.x, params["w"]["kernel"]), axis=-1) - batch.y
    return Mean(jnp.sum(batch.weights * jnp.square(error)), jnp.sum(batch.weights))


def program(adaptation: Any, **options: Any) -> Any:
    parts = lambda _: squares, lambda _: adaptation, lambda numbers: adamw(numbers["lr"], total_steps=9)
    return make_program(*parts, **options)


FULL, LORA = program(full()), program(lora(2, select="w/kernel"))
PROBES = {"full": training_probes(LAB, FULL, BASE), "lora": training_probes(LAB, LORA, BASE)}


def run(name: str, **changes: Any) -> Run:
    parts: dict[str, Any] = {
        "program": {"full": FULL, "lora": LORA}[name],
        "numbers": {"lr": 0.05},
        "seed": 3,
        "base": BASE,
        "batches": points,
        "probe": lambda numbers, base, delta: {"held_out": 1.0},
        "total_steps": 7,
        "measure_every": 2,
        "save_every": 3,
    }
    return Run(**(parts | changes))


def follow(one: Run, probes: TrainingProbes | None, checkpoints: Checkpoints, journal: Journal) -> Fitted:
    def begin(seat: Any, clock: Any) -> Any:
        return probed(probes, one, seat, checkpoints, lambda kept: course(one, seat, kept, into(journal), clock))

    return alone(begin, one.program, one.base, one.numbers, one.seed)


def followed(one: Run, probes: TrainingProbes | None, folder: Path, journal: Journal) -> Fitted:
    checkpoints = open_checkpoints(folder)
    try:
        return follow(one, probes, checkpoints, journal)
    finally:
        checkpoints.close()


class Killed(Exception):
    pass


def until(at: int) -> Callable[[int], Points]:
    def batches(step: int) -> Points:
        if step == at:
            raise Killed
        return points(step)

    return batches


@pytest.mark.parametrize("name", ["full", "lora"])
def test_the_path_of_a_killed_run_is_that_of_one_never_interrupted_bit_by_bit(name: str, tmp_path: Path):
    wanted: Journal = {}
    follow(run(name), PROBES[name], NOWHERE, wanted)
    assert {step for step, metric in wanted if metric == "path/turn/all"} == {4, 6, 7}
    for at in (4, 6):  # saved at 3, between two measurements, and at 6, which is one
        journal: Journal = {}
        with pytest.raises(Killed):
            followed(run(name, batches=until(at)), PROBES[name], tmp_path / str(at), journal)
        assert followed(run(name), PROBES[name], tmp_path / str(at), journal).resumed_at == at // 3 * 3
        assert journal == wanted


def test_a_path_along_training_is_the_path_over_its_saved_deltas():
    journal: Journal = {}
    deltas: list[Any] = []

    def probe(numbers: Any, base: Any, delta: Any) -> dict[str, float]:
        deltas.append(jax.tree.map(jnp.copy, delta))
        return {}

    follow(run("full", probe=probe), PROBES["full"], NOWHERE, journal)
    whole = measured_path(full().bind, BASE, deltas)
    found = [value for (_, metric), value in sorted(journal.items()) if metric == "path/distance/all"]
    np.testing.assert_allclose(found, whole["path/distance/all"], rtol=1e-6)


def test_runs_in_slots_follow_paths_of_their_own():
    placement, seeds, journals = (
        Placement(make_mesh(devices=jax.devices()[:1]), {"w": {"kernel": (None, None)}}),
        [3, 4, 5],
        [],
    )
    base, one = jax.device_put(BASE, placement.replicated), program(full(), placement=placement)
    lab: Any = SimpleNamespace(probes=WANTED, placement=placement)
    probes = training_probes(lab, one, base)
    runs = [run("full", program=one, base=base, numbers={"lr": 0.01 * s}, seed=s) for s in seeds]
    for each in runs:
        journals.append({})
        follow(
            each._replace(batches=lambda s: jax.device_put(points(s), placement.batch)), probes, NOWHERE, journals[-1]
        )
    together: list[Journal] = [{} for _ in runs]

    def begin(each: Run, journal: Journal) -> Callable[[Any, Any], Any]:
        each = each._replace(batches=lambda step: jax.device_get(points(step)))
        return lambda seat, clock: probed(
            probes, each, seat, NOWHERE, lambda kept: course(each, seat, kept, into(journal), clock)
        )

    works = [Work(each.numbers, each.seed, begin(each, journal)) for each, journal in zip(runs, together, strict=True)]
    slots = compile_replicas(one, {"lr": 0.0}, base, jax.device_get(points(0)), 2, "map", placement=placement)
    assert all(isinstance(end, Fitted) for end in fit_replicas(slots, base, works).values())
    for alone_, found in zip(journals, together, strict=True):
        assert found.keys() == alone_.keys()
        for row, value in found.items():
            assert value == pytest.approx(alone_[row], rel=2e-5, abs=1e-6), row


def test_early_stopping_and_the_path_are_both_remembered(tmp_path: Path):
    stopping = ("path/distance/all", lambda numbers: early_stopping(patience=5))
    one, journal, wanted = program(full(), stopping=stopping), {}, {}
    follow(run("full", program=one), PROBES["full"], NOWHERE, wanted)
    with pytest.raises(Killed):
        followed(run("full", program=one, batches=until(4)), PROBES["full"], tmp_path, journal)
    fitted = followed(run("full", program=one), PROBES["full"], tmp_path, journal)
    assert journal == wanted
    assert float(fitted.state.watch.best) == 0.0  # watched from the start, not from where it was resumed


def test_a_study_that_asks_for_nothing_has_no_probes():
    for wanted in (None, {}, {"updates": None, "trajectory": None, "final": {"k": 8}}):
        assert training_probes(SimpleNamespace(probes=wanted), FULL, BASE) is None  # pyright: ignore


ALL = [
    f"measure@measure.{name}={file}"
    for name, file in {
        **{"trajectory": "trajectory", "drift": "drift", "heads": "attention", "interference": "interference"},
        **{"noise_scale": "noise_scale", "stability": "stability"},
    }.items()
]


@pytest.mark.slow
def test_a_killed_study_has_all_its_curves_and_a_figure_of_them(
    overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    folders = {name: tmp_path / name for name in ("whole", "killed")}
    few = [*overrides, *ALL, "~methods.full", "training.duration.steps=8", "replication.how=alone"]

    def asked(name: str) -> list[str]:
        return [*few, f"hydra.run.dir={folders[name]}"]

    finish(asked("whole"), tmp_path, environment)
    saved = folders["killed"] / "runs"
    assert kill_when(
        lambda: len([*saved.glob("*/*/*/checkpoints/steps/4")]) > 0, asked("killed"), tmp_path, environment
    )
    finish(asked("killed"), tmp_path, environment)
    assert any(result["resumed_at"] for result in results(folders["killed"]).values())
    assert_same_curves(folders["killed"], folders["whole"])
    metrics = {*load_curves(folders["whole"] / "curves.parquet")["metric"].to_pylist()}
    assert {"path/turn/all", "noise/adapt/noise_scale", "stability/lambda_max"} <= metrics
    for first in ("hidden/adapt/", "attention/adapt/", "interference/cosine/"):
        assert any(metric.startswith(first) for metric in metrics)
    assert (folders["whole"] / "figures" / "training_probes.png").stat().st_size > 0
    assert '<figure id="training_probes">' in (folders["whole"] / "report.html").read_text()
