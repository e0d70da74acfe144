"""What a study's config says of meshes is what runs."""

from pathlib import Path

import pytest

from adaptlab import config, shard
from adaptlab.study import Training
from adaptlab.study.lab import pipeline_of, trained_on
from adaptlab.train import duration
from tests.study.conftest import finish, results

MESHES = {
    "1f1b": ["mesh.stage=2", "mesh.data=2", "training.pipeline=1f1b", "training.microbatches=2"],
    "gpipe": ["mesh.stage=2", "mesh.tensor=2", "training.pipeline=gpipe", "training.microbatches=4"],
    "zero1": ["mesh.data=4", "training.moments=zero1"],
    "host": ["mesh.data=2", "mesh.fsdp=2", "training.moments=host"],
}


def training(**said: object) -> Training:
    return Training(duration(steps=1), **said)  # type: ignore[arg-type]


def test_training_says_where_moments_rest_and_how_stages_are_run():
    placement = shard.Placement(shard.make_mesh(stage=2, data=4), None)
    assert trained_on(placement, training(moments="zero1")).moments is shard.ZERO1
    assert trained_on(placement, training(moments="host")).moments_on_host
    assert trained_on(placement, training()) == placement
    assert pipeline_of(training()) is None
    piped = training(pipeline="1f1b", microbatches=4)
    assert trained_on(placement, piped) == placement
    assert pipeline_of(piped) == {"microbatches": 4, "schedule": "1f1b"}


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ({"pipeline": "1f1b"}, "training.microbatches=None: give both"),
        ({"microbatches": 4}, "training.pipeline=None and"),
        ({"pipeline": "1f1b", "microbatches": 4}, r"mesh\.stage=1: choose mesh\.stage"),
    ],
)
def test_what_would_be_ignored_is_refused(said: dict, answer: str):
    placement = shard.Placement(shard.make_mesh(data=8), None)
    with pytest.raises(config.ConfigError, match=answer):
        trained_on(placement, training(**said))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", MESHES)
def test_a_study_on_a_mesh_ends_where_it_ends_on_one_device(mesh: str, overrides: list[str], quick, tmp_path: Path):
    finish([*overrides, f"hydra.run.dir={tmp_path / 'one'}"], tmp_path, quick)
    flags = quick | {"XLA_FLAGS": quick["XLA_FLAGS"] + " --xla_force_host_platform_device_count=4"}
    finish([*overrides, *MESHES[mesh], f"hydra.run.dir={tmp_path / 'mesh'}"], tmp_path, flags)
    one, many = results(tmp_path / "one"), results(tmp_path / "mesh")
    assert one.keys() == many.keys()
    for name, result in one.items():
        assert many[name]["target_loss"] == pytest.approx(result["target_loss"], rel=1e-5)
