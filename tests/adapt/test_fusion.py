from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import config, tree
from adaptlab.adapt import bottleneck, fusion, lora, prepared, save_delta
from adaptlab.shard import Placement, make_mesh, place
from tests.laws.table import MODELS, scattered

ROW = MODELS["llama_untied_gqa"]
SLOTS = ROW.model.slots()
BASE = scattered(ROW.model.init(jax.random.key(0)), 0)
BATCH = ROW.batch(0)
KEY = jax.random.key(0)
SLOT = "layers/feed_forward_adapter"


def saved(folder: Path, seed: int, base: str = "0" * 64, **options: Any) -> str:
    """A trained adapter on disk."""
    options = {"width": 3, "placement": "pfeiffer", **options}
    delta = scattered(bottleneck(**options, slots=SLOTS).init(KEY, BASE), seed)
    path = folder / f"{seed}.safetensors"
    save_delta(path, delta, adapt={"_target_": "adaptlab.adapt.bottleneck", **options}, base=base)
    return str(path)


def outputs(adaptation: Any, delta: Any = None) -> np.ndarray:
    base = prepared(adaptation, BASE)
    delta = adaptation.init(KEY, base) if delta is None else delta
    return np.asarray(ROW.outputs(adaptation.bind(base, delta), BATCH))


def test_one_adapter_fused_is_that_adapter(tmp_path: Path):
    alone = bottleneck(3, placement="pfeiffer", slots=SLOTS)
    delta = scattered(alone.init(KEY, BASE), 1)
    wanted = outputs(alone, delta)
    assert np.abs(wanted - np.asarray(ROW.outputs(BASE, BATCH))).max() > 0.01
    np.testing.assert_allclose(outputs(fusion([saved(tmp_path, 1)], slots=SLOTS)), wanted, rtol=0, atol=1e-5)


def test_the_result_is_attention_over_the_adapters_outputs(tmp_path: Path):
    adaptation = fusion([saved(tmp_path, i) for i in range(3)], temperature=1.7, slots=SLOTS)
    base = prepared(adaptation, BASE)
    delta = scattered(adaptation.init(KEY, base), 5)
    node = jax.tree.map(lambda x: x[1], adaptation.bind(base, delta)["layers"]["feed_forward_adapter"])
    y, x = (jnp.asarray(z, jnp.float32) for z in np.random.default_rng(0).normal(size=(2, 4, 16)))
    z_ABD = np.stack([adapter(y, x) for adapter in node.adapters])
    w = {name: np.asarray(z[1]) for name, z in delta["layers"]["feed_forward_adapter"].items()}
    scores_AB = np.einsum("bd,abd->ab", np.asarray(y) @ w["query"], z_ABD @ w["key"]) / 1.7
    share_AB = np.exp(scores_AB - scores_AB.max(0))
    share_AB = share_AB / share_AB.sum(0)
    wanted = np.einsum("ab,abd->bd", share_AB, z_ABD @ w["value"])
    np.testing.assert_allclose(node(y, x), wanted, rtol=1e-4, atol=1e-4)


def test_a_large_temperature_mixes_evenly(tmp_path: Path):
    adaptation = fusion([saved(tmp_path, i) for i in range(2)], temperature=1e6, slots=SLOTS)
    base = prepared(adaptation, BASE)
    node = adaptation.bind(base, adaptation.init(KEY, base))["layers"]["feed_forward_adapter"]
    node = jax.tree.map(lambda x: x[0], node)
    y = jnp.asarray(np.random.default_rng(0).normal(size=(4, 16)), jnp.float32)
    wanted = np.mean([adapter(y, y) for adapter in node.adapters], axis=0)
    np.testing.assert_allclose(node(y, y), wanted, rtol=1e-4, atol=1e-4)


def test_the_adapters_are_arguments_of_a_program_and_not_constants_in_it(tmp_path: Path):
    adaptation = fusion([saved(tmp_path, i) for i in range(2)], slots=SLOTS)
    base = prepared(adaptation, BASE)
    delta = adaptation.init(KEY, base)
    traced = jax.make_jaxpr(lambda d, b: ROW.outputs(adaptation.bind(b, d), BATCH))(delta, base)
    held = {x.shape for x in jax.tree.leaves(adaptation.bind(base, delta)["layers"]["feed_forward_adapter"].adapters)}
    assert not held & {np.shape(c) for c in traced.consts} - {()}
    assert tree.count(base) - tree.count(BASE) == 2 * 2 * (2 * 16 * 3 + 3 + 16)


def test_the_adapters_lie_on_every_device_of_the_bases_mesh(tmp_path: Path):
    placement = Placement(make_mesh(data=4, tensor=2), ROW.model.axes())
    base = place(BASE, placement.shardings(placement.axes, BASE))
    held = prepared(fusion([saved(tmp_path, 1)], slots=SLOTS), base)
    assert tree.count(held) > tree.count(base)
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(held))


def test_adapters_at_every_slot_need_fusion_at_every_slot(tmp_path: Path):
    files = [saved(tmp_path, i, placement="houlsby") for i in range(2)]
    with pytest.raises(ValueError, match=r"0.safetensors also changes \['layers/attention_adapter'\]; select those"):
        outputs(fusion(files, slots=SLOTS))
    assert np.all(np.isfinite(outputs(fusion(files, select=".*", slots=SLOTS))))
    files = [*files[:1], saved(tmp_path, 7)]
    with pytest.raises(ValueError, match=r"7.safetensors adds nothing at \['layers/attention_adapter'\]"):
        outputs(fusion(files, select=".*", slots=SLOTS))


def test_an_adapter_of_kernels_cannot_be_fused(tmp_path: Path):
    path = tmp_path / "lora.safetensors"
    save_delta(path, lora(2).init(KEY, BASE), adapt={"_target_": "adaptlab.adapt.lora", "rank": 2}, base="0" * 64)
    with pytest.raises(ValueError, match=r"lora.safetensors adds nothing at \['layers/feed_forward_adapter'\], and at"):
        outputs(fusion([str(path)], slots=SLOTS))


def test_what_cannot_be_fused_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="nothing to combine"):
        fusion([], slots=SLOTS)
    with pytest.raises(ValueError, match="no delta at nowhere"):
        fusion(["nowhere"], slots=SLOTS)
    with pytest.raises(ValueError, match="adapters of one base, and these were trained on several"):
        fusion([saved(tmp_path, 1), saved(tmp_path, 2, base="1" * 64)], slots=SLOTS)
    with pytest.raises(ValueError, match="fusion adds computation at slots of kind 'residual' and the model has none"):
        fusion([saved(tmp_path, 1)], slots={})


def test_its_yaml_asks_for_files_and_builds_it(tmp_path: Path):
    with pytest.raises(config.ConfigError, match="adapters"):
        config.compose("adapt/fusion")
    node = config.compose("adapt/fusion", [f"adapt.adapters=[{saved(tmp_path, 1)}]"])["adapt"]
    built = config.instantiate(config.validate(node), slots=SLOTS)
    assert np.all(np.isfinite(outputs(built)))
