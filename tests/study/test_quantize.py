"""A study over a quantised base: QLoRA from the command line."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest

from adaptlab import config, leaf, tree
from adaptlab.shard import make_mesh
from adaptlab.study import members, open_base
from adaptlab.study.programs import plan
from tests.study.conftest import tiny_base

METHODS = {
    "lora": {"adapt": {"_target_": "adaptlab.adapt.lora"}, "optim": {"_target_": "adaptlab.optim.sgd", "lr": 0.1}},
    "full": {"adapt": {"_target_": "adaptlab.adapt.full"}, "optim": {"_target_": "adaptlab.optim.sgd", "lr": 0.1}},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_base(tmp_path_factory.mktemp("base"))


def base(folder: Path, quantize: Any) -> dict[str, Any]:
    source = {"_target_": "adaptlab.source.local", "path": str(folder)}
    return {"model": {"_target_": "adaptlab.models.pretrained", "source": source}, "quantize": quantize}


def planned(node: dict[str, Any], *names: str) -> None:
    pretrained, _, params = open_base(node, make_mesh(data=8))
    lab: Any = SimpleNamespace(base=node, pretrained=pretrained, params=params)
    plan(lab, members({name: config.validate(METHODS[name]) for name in names}, [0]))


def test_a_base_is_quantised_as_it_is_opened_and_lies_where_its_axes_say(folder: Path):
    node = base(folder, {"scheme": "nf4", "block": 16})
    pretrained, _, params = open_base(node, make_mesh(data=4, tensor=2))
    assert pretrained.quantized is not None
    assert pretrained.fingerprint == tree.digest(params)
    up, down = (params["layers"]["feed_forward"][name]["kernel"] for name in ("up", "down"))
    assert (up.codes.shape, down.codes.shape) == ((2, 48, 16), (2, 32, 24))
    assert up.codes.sharding.shard_shape(up.codes.shape) == (2, 24, 16)
    assert down.codes.sharding.shard_shape(down.codes.shape) == (2, 32, 12)
    assert isinstance(params["embed"]["embedding"], jax.Array)
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(params))


def test_a_base_is_left_as_it_is_unless_one_asks(folder: Path):
    pretrained, _, params = open_base(base(folder, None), make_mesh(data=8))
    assert pretrained.quantized is None
    assert not any(map(leaf.is_node, jax.tree.leaves(params, is_leaf=leaf.is_node)))


@pytest.mark.parametrize(
    ("quantize", "message"),
    [
        ("nf5", r"base\.quantize\.scheme='nf5': Quantization expects .*'nf4', 'fp4', 'int8', 'dynamic8', 'stored'"),
        ({"scheme": "nf4", "blocks": 32}, r"base\.quantize\.blocks=32: .*Did you mean 'block'"),
    ],
)
def test_an_unknown_scheme_is_an_error_before_anything_is_read(quantize: Any, message: str):
    with pytest.raises(config.ConfigError, match=message):
        open_base({"quantize": quantize}, make_mesh(data=8))


def test_training_the_codes_is_an_error_before_the_first_run_begins(folder: Path):
    node = base(folder, {"scheme": "int8"})
    planned(node, "lora")
    with pytest.raises(config.ConfigError, match=r"methods\.full does not go with base\.quantize=.*lora\(\)"):
        planned(node, "lora", "full")
