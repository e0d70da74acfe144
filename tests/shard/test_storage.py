"""In which memory, and in how many bits, things rest."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

from adaptlab import config, tree
from adaptlab.adapt import full, selected
from adaptlab.models import Pretrained, llama
from adaptlab.shard import make_mesh
from adaptlab.study.lab import open_base
from tests.shard.meshes import LLAMA, MESHES, METHODS, MODELS, base_of, train


def test_a_models_axes_may_be_asked_for_inside_a_shard_map():
    model = llama(LLAMA)

    def inside(x: jax.Array) -> jax.Array:
        assert model.axes()["embed"]["embedding"] == ("vocab", "embed")
        return x

    mesh = make_mesh(data=8)
    along = PartitionSpec("data")
    jax.jit(jax.shard_map(inside, mesh=mesh, in_specs=along, out_specs=along))(jnp.zeros(8))


@pytest.fixture
def base(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    row = MODELS["llama"]
    loaded = Pretrained("toy", row.model(), lambda: base_of(row), "0" * 64, 16)
    monkeypatch.setattr(config, "instantiate", lambda node, **given: loaded)
    return {"model": {}}


def test_a_base_may_rest_in_16_bits_and_what_trains_of_it_is_in_32(base: dict[str, Any]):
    _, _, params = open_base(base | {"weights_dtype": "bfloat16"}, make_mesh(data=8))
    assert {x.dtype for x in jax.tree.leaves(params)} == {jnp.dtype("bfloat16")}
    for adaptation in (full(), selected(".*/attention/.*")):
        delta = jax.eval_shape(adaptation.init, jax.random.key(0), params)
        assert {x.dtype for x in jax.tree.leaves(delta)} == {jnp.dtype("float32")}


def test_another_dtype_of_a_base_is_an_error_with_the_choices(base: dict[str, Any]):
    with pytest.raises(config.ConfigError, match=r"base.weights_dtype='int3' is not one of \['bfloat16', 'float32'\]"):
        open_base(base | {"weights_dtype": "int3"}, make_mesh(data=8))


@pytest.mark.slow
def test_moments_on_the_host_change_no_bit():
    here = train(MODELS["llama"], METHODS["full"], MESHES["fsdp"])
    there = train(MODELS["llama"], METHODS["full"], MESHES["fsdp"], change=lambda p: p._replace(moments_on_host=True))
    state = there.arguments[2]
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state)} == {"pinned_host"}
    assert {x.sharding.memory_kind for x in jax.tree.leaves(state.delta)} == {"device"}
    assert tree.digest(there.state) == tree.digest(here.state)
