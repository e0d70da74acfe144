"""Same numbers on every mesh: losses, gradients and what trains are those of one device."""

import functools
from typing import Any

import numpy as np
import pytest

from adaptlab import tree
from adaptlab.shard import ZERO1, Placement
from tests.shard.meshes import MESHES, METHODS, MODELS, Trained, momentum, train

LIMIT = 1e-5  # float32: of a metric, or of a whole array's norm


@functools.cache
def alone(model: str, method: str) -> Trained:
    return train(MODELS[model], METHODS[method], None, optimizer=momentum)


def assert_same(got: Trained, wanted: Trained) -> None:
    for mine, theirs in zip(got.metrics, wanted.metrics, strict=True):
        for name in ("loss", "grad_norm", "weight"):
            np.testing.assert_allclose(mine[name], theirs[name], rtol=LIMIT, err_msg=name)
    # But for a key's bias: a softmax does not see what all scores share, so that its gradient is rounding alone.
    for part in ("delta", "opt_state"):
        mine, theirs = (tree.flatten(getattr(run.state, part)) for run in (got, wanted))
        seen = {path: x for path, x in theirs.items() if np.ndim(x) and not path.endswith("attention/key/bias")}
        far = {path: distance(mine[path], x) for path, x in seen.items()}
        assert all(d <= LIMIT for d in far.values()), {path: d for path, d in far.items() if d > LIMIT}


def distance(x: Any, y: Any) -> float:
    return float(np.linalg.norm(x - y) / max(np.linalg.norm(y), 1e-20))


DEFAULT = [
    ("llama", "full", "data x fsdp x tensor"),
    ("llama", "lora", "fsdp x tensor"),
    ("bert", "lora", "data x fsdp"),
]
EVERY = [(model, method, mesh) for model in MODELS for method in METHODS for mesh in MESHES]
CASES = [pytest.param(*case, marks=[] if case in DEFAULT else pytest.mark.slow) for case in EVERY]


@pytest.mark.parametrize(("model", "method", "mesh"), CASES)
def test_three_steps_on_a_mesh_are_those_on_one_device(model: str, method: str, mesh: str):
    assert_same(train(MODELS[model], METHODS[method], MESHES[mesh], optimizer=momentum), alone(model, method))


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "dots", "attention"])
def test_rematerialisation_changes_no_number_on_a_mesh(remat: str):
    options: dict[str, Any] = {"remat": remat, "unroll": 1, "optimizer": momentum}
    got = train(MODELS["llama"], METHODS["full"], MESHES["data x fsdp x tensor"], **options)
    assert_same(got, alone("llama", "full"))


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data x fsdp x tensor", "data"])
def test_microbatches_on_a_mesh_are_those_on_one_device(mesh: str):
    options: dict[str, Any] = {"accumulate": 2, "rows": 16, "optimizer": momentum}
    wanted = train(MODELS["llama"], METHODS["full"], None, **options)
    assert_same(train(MODELS["llama"], METHODS["full"], MESHES[mesh], **options), wanted)


@pytest.mark.slow
def test_moments_alone_may_be_shared_out():
    def zero1(placement: Placement) -> Placement:
        return placement._replace(moments=ZERO1)

    got = train(MODELS["llama"], METHODS["full"], {"data": 8}, change=zero1)
    assert_same(got, train(MODELS["llama"], METHODS["full"], None))
    state = tree.flatten(got.arguments[2])
    kernel = next(x for path, x in state.items() if path.endswith("mu/layers/feed_forward/up/kernel"))
    assert kernel.addressable_shards[0].data.size == kernel.size // 8
    assert state["delta/layers/feed_forward/up/kernel"].sharding.is_fully_replicated
