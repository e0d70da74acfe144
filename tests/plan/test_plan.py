"""A plan from the command's config to its files; the TPU's own compiler is asked where it is installed."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import jax
import pytest

from adaptlab import config, tree
from adaptlab.plan import Job, choose_backend
from adaptlab.plan.compiler import make_compiler
from adaptlab.plan.worker import measure
from scripts.plan import Planning, plan

SMALL = [
    *("model.shape.width=32", "model.shape.ffn_width=64", "model.shape.vocab_size=64", "model.shape.head_width=8"),
    *("length=16", "batch_size=4", "accumulate=1", "adapt.rank=2", "tokens=1e6"),
]
KEYS = {"fits", "hbm", "memory_per_chip", "flops", "collectives", "step_time", "mfu", "limit", "suggestions"}
LIBTPU = importlib.util.find_spec("libtpu") is not None


def asked(*overrides: str) -> Planning:
    node = config.compose("plan", [*SMALL, *overrides])
    return Planning(**config.validate(node, schema=Planning))


def job(*overrides: str) -> Job:
    given = asked(*overrides)
    return Job(**{name: getattr(given, name) for name in Job._fields})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("plan")
    fits = plan(asked("backend=cpu", "topology=v5e:2x2", "mesh.fsdp=2", "mesh.data=2"), folder)
    names = ("plan", "plan_details")
    return {"exit": fits, **{name: json.loads((folder / f"{name}.json").read_text()) for name in names}}


def test_without_libtpu_a_plan_is_made_on_simulated_devices_and_says_what_is_an_estimate(written: dict[str, Any]):
    assert written["exit"] is True
    assert written["plan"]["fits"] is True
    estimates = " ".join(written["plan_details"]["estimates"])
    assert all(word in estimates for word in ("activations", "collectives", "step_time", "mfu"))
    assert written["plan_details"]["backend"] == "cpu"


def test_plan_json_has_its_keys_and_memory_by_kind_in_bytes(written: dict[str, Any]):
    said = written["plan"]
    assert set(said) == KEYS
    assert {"parameters", "optimiser", "activations", "temporaries"} < set(said["memory_per_chip"])
    # float32 weights, of which two fsdp devices share those with an `embed` axis: at most 1/2 and a little
    whole = 4 * (written["plan_details"]["parameters"] + written["plan_details"]["trained"])
    assert whole / 2 <= said["memory_per_chip"]["parameters"] < 0.7 * whole
    assert said["hbm"] == int(15.75 * 2**30)
    assert 0 < said["mfu"] < 1
    assert said["step_time"] > 0
    assert said["limit"] in ("matrix products", "memory bandwidth", "interconnect", "data-centre network")


def test_its_operations_are_those_of_the_formula(written: dict[str, Any]):
    L, D, H, G, K, F, V, B, T, R = 2, 32, 4, 2, 8, 64, 64, 4, 16, 2
    matrices = [(D, H * K), (D, G * K), (D, G * K), (H * K, D), (D, F), (D, F), (F, D)]
    frozen = sum(2 * a * b for a, b in matrices)  # forward, and the gradient of the input
    adapters = sum(3 * R * (a + b) for a, b in matrices)  # and those of both factors
    scores = 2 * 3 * H * K * T
    exact = 2 * B * T * (L * (frozen + adapters + scores) + 2 * D * V)
    assert written["plan"]["flops"] == pytest.approx(exact, rel=0.02)


def test_shared_out_weights_are_gathered_and_gradients_reduced(written: dict[str, Any]):
    rows = {(one["kind"], *one["axes"]) for one in written["plan"]["collectives"]}
    assert ("all-gather", "fsdp") in rows
    assert any(kind in ("all-reduce", "reduce-scatter") for kind, *_ in rows)
    assert not any(one["crosses_slices"] for one in written["plan"]["collectives"])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["mesh.data=3"], r"data=3 needs 3 devices.*product is 8"),
        (["mesh.data=8", "batch_size=4"], r"batch_size=4 rows .* 8 parts .*choose batch_size from multiples of 8"),
        (["mesh.data=8", "batch_size=16", "accumulate=4"], r"accumulate=4 .*choose accumulate from \[1, 2\]"),
        (["mesh.data=1", "mesh.tensor=8"], r"heads"),
    ],
)
def test_sizes_that_do_not_divide_are_refused_with_those_that_do(overrides: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        measure({"job": job("topology=v5e:2x4", *overrides)._asdict(), "backend": "cpu"})


def test_moments_rest_with_what_they_belong_to_or_apart_or_on_the_host():
    with pytest.raises(ValueError, match=r"moments='disk' is not one of \[None, 'zero1', 'host'\]"):
        measure({"job": job("topology=v5e:2x4")._replace(moments="disk")._asdict(), "backend": "cpu"})


def test_what_a_job_gets_wrong_is_an_error_of_the_process_that_asked():
    with pytest.raises(ValueError, match="product is 4"):
        make_compiler("cpu")(job("topology=v5e:2x2", "mesh.data=3"))


def test_a_backend_is_one_of_three():
    with pytest.raises(ValueError, match=r"backend='gpu' is not one of \['auto', 'cpu', 'tpu'\]"):
        choose_backend("gpu")
    assert choose_backend("auto") == ("tpu" if LIBTPU else "cpu")
    assert choose_backend("cpu") == "cpu"
    if not LIBTPU:
        with pytest.raises(ValueError, match=r"libtpu is not installed; pip install"):
            choose_backend("tpu")


# Billions of parameters, as published: arXiv:2407.21783, arXiv:2401.04088, and the models' pages.
PUBLISHED = {
    "bert_base": 0.1095,
    "gpt2": 0.124,
    "llama32_1b": 1.24,
    "llama3_70b": 70.6,
    "llama3_8b": 8.03,
    "minilm": 0.02271 - 0.00015,  # without its pooler
    "mixtral_8x7b": 46.7,
    "smollm2_135m": 0.1345,
}


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_a_models_sizes_give_its_published_number_of_parameters(name: str):
    model = config.instantiate(config.compose(f"model/{name}")["model"])
    assert tree.count(jax.eval_shape(model.init, jax.random.key(0))) / 1e9 == pytest.approx(PUBLISHED[name], rel=0.005)


def test_every_model_for_planning_has_a_published_number():
    names = {path.stem for path in (config.conf_dir() / "model").glob("*.yaml")}
    assert names - {"tiny"} == set(PUBLISHED)


@pytest.mark.slow
@pytest.mark.skipif(not LIBTPU, reason="needs the `tpu` extra")
def test_the_tpus_compiler_accepts_a_small_step_and_refuses_a_large_one(tmp_path: Path):
    small = asked("backend=tpu", "topology=v5e:2x2", "mesh.fsdp=4", "mesh.data=1")
    assert plan(small, tmp_path)
    said = json.loads((tmp_path / "plan_details.json").read_text())
    assert said["estimates"] == []
    large = asked(
        *("backend=tpu", "topology=v5e:2x2", "mesh.fsdp=4", "mesh.data=1", "model.shape.vocab_size=131072"),
        *("batch_size=128", "length=1024", "max_compiles=2"),
    )
    assert not plan(large, tmp_path)
    summary = json.loads((tmp_path / "plan.json").read_text())
    details = json.loads((tmp_path / "plan_details.json").read_text())
    assert summary["limit"] == "memory capacity"
    assert "131072" in details["largest_buffers"][0]["shape"]  # the logits
    assert summary["suggestions"][0]["overrides"][0].startswith("accumulate=")
    assert tree.flatten(summary["memory_per_chip"])["temporaries"] > summary["hbm"] // 2
