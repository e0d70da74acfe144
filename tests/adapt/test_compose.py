from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import config, leaf, tree
from adaptlab.adapt import (
    Adaptation,
    bottleneck,
    chain,
    frozen,
    full,
    layer_norm,
    lora,
    materialize,
    partition,
    selected,
)
from adaptlab.models import LlamaShape, Quantization, llama, quantize
from tests.laws.table import scattered

BASE = scattered({"q": {"kernel": jnp.zeros((2, 6, 4))}, "norm": {"scale": jnp.zeros(6)}}, 0)
KEY = jax.random.key(0)


def assert_close(got: Any, wanted: Any) -> None:
    for path, x in tree.flatten(wanted).items():
        np.testing.assert_allclose(tree.flatten(got)[path], x, rtol=1e-5, atol=1e-6, err_msg=path)


def test_a_later_stage_adapts_what_the_earlier_ones_bound():
    first, second = lora(2, alpha=3.0, select="q/kernel"), lora(3, alpha=1.0, select="q/kernel")
    both = chain([first, second])
    delta = scattered(both.init(KEY, BASE), 1)
    step = materialize(first.bind(BASE, delta["0"]))
    assert_close(materialize(both.bind(BASE, delta)), materialize(second.bind(step, delta["1"])))


def test_stages_of_a_kind_start_differently():
    delta = chain([lora(2, select="q/kernel"), lora(2, select="q/kernel")]).init(KEY, BASE)
    assert tree.digest(delta["0"]) != tree.digest(delta["1"])


def test_full_weights_may_be_adapted_further_and_adapted_weights_not_copied():
    delta = chain([full(), lora(2, select="q/kernel")]).init(KEY, BASE)
    assert {path.split("/")[0] for path in tree.flatten(delta)} == {"0", "1"}
    with pytest.raises(ValueError, match=r"stage '1' copies \['q/kernel'\], adapted before it: put it first"):
        chain([lora(2, select="q/kernel"), full()]).init(KEY, BASE)


def test_a_chain_names_its_stages_and_its_numbers_are_those_of_its_parts():
    node = config.validate(config.compose("adapt/chain")["adapt"])
    skeleton, numbers = config.split(node)
    assert numbers == {"stages.lora.alpha": 16.0}
    stages = config.instantiate(config.fill(skeleton, {"stages.lora.alpha": jnp.asarray(2.0)}))
    assert isinstance(stages, Adaptation)


def test_a_chain_of_one_is_that_one():
    alone, one = lora(2, select="q/kernel"), chain({"only": lora(2, select="q/kernel")})
    delta = scattered(alone.init(KEY, BASE), 1)
    assert_close(materialize(one.bind(BASE, {"only": delta})), materialize(alone.bind(BASE, delta)))
    assert chain([frozen()]).bind(BASE, {}) is BASE


@pytest.mark.parametrize("stages", [{}, {"a/b": frozen()}], ids=["none", "a slash"])
def test_a_chain_needs_stages_with_plain_names(stages: Any):
    with pytest.raises(ValueError, match="give at least one stage, and names without '/'"):
        chain(stages)


def test_a_stage_that_draws_gets_a_key_of_its_own_and_the_others_are_bound_as_ever():
    seen = []

    def sample(base: Any, delta: Any, key: Any) -> Any:
        seen.append(jax.random.key_data(key))
        return base

    drawing = frozen()._replace(sample=sample)
    both = chain([drawing, selected("norm/scale"), drawing])
    assert both.sample is not None
    delta = jax.tree.map(lambda x: x + 1, both.init(KEY, BASE))
    np.testing.assert_allclose(both.sample(BASE, delta, KEY)["norm"]["scale"], BASE["norm"]["scale"] + 1)
    assert len(seen) == 2
    assert not np.array_equal(*seen)
    assert chain([frozen(), lora(2, select="q/kernel")]).sample is None


def test_a_chain_prepares_its_base_for_every_stage():
    def scaled(path: str) -> Adaptation:
        def prepare(base: Any) -> Any:
            return tree.map_with_path(lambda p, x: 2 * x if p == path else x, base, is_leaf=leaf.is_node)

        return frozen()._replace(prepare=prepare)

    both = chain([scaled("q/kernel"), scaled("norm/scale"), frozen()])
    assert both.prepare is not None
    assert_close(both.prepare(BASE), jax.tree.map(lambda x: 2 * x, BASE))
    assert chain([frozen()]).prepare is None


def test_parts_that_bind_nodes_or_stand_on_nodes_are_joined():
    inner = lora(2, select="q/kernel")
    on_nodes = inner.bind(BASE, inner.init(KEY, BASE))
    parts = partition({"q/.*": lora(1, select=".*"), ".*": full()})
    delta = scattered(parts.init(KEY, on_nodes), 1)
    bound = parts.bind(on_nodes, delta)
    assert isinstance(bound["q"]["kernel"].w, leaf.LowRank)
    np.testing.assert_array_equal(bound["norm"]["scale"], delta["norm"]["scale"])


MODEL = llama(LlamaShape(32, 16, 2, 4, 2, 6, 20))
TEXT = scattered(jax.jit(MODEL.init)(KEY), 0)


def test_parts_may_add_computation_at_slots_of_their_own_and_not_at_the_same():
    added = bottleneck(2, placement="pfeiffer", slots=MODEL.slots())
    parts = partition({"layers/attention/.*": lora(2, select=".*kernel"), "layers/.*": added, ".*": frozen()})

    @jax.jit
    def logits(base: Any) -> jax.Array:
        params = parts.bind(base, scattered(parts.init(KEY, base), 1))
        assert {"feed_forward_adapter"} == params["layers"].keys() - base["layers"].keys()
        return MODEL.apply(params, jnp.ones((1, 3), jnp.int32))

    assert np.any(logits(TEXT) != MODEL.apply(TEXT, jnp.ones((1, 3), jnp.int32)))
    twice = partition({"layers/attention/.*": added, ".*": added})
    with pytest.raises(ValueError, match="two parts put something at"):
        jax.eval_shape(lambda base: twice.init(KEY, base), TEXT)


def test_a_part_that_draws_draws_and_the_others_are_bound():
    def sample(base: Any, delta: Any, key: Any) -> Any:
        return jax.tree.map(lambda x: x + jax.random.normal(key, x.shape), base)

    parts = partition({"q/.*": frozen()._replace(sample=sample), ".*": full()})
    assert parts.sample is not None
    delta = jax.tree.map(lambda x: x + 1, parts.init(KEY, BASE))
    drawn = parts.sample(BASE, delta, KEY)
    np.testing.assert_array_equal(drawn["norm"]["scale"], delta["norm"]["scale"])
    assert np.any(drawn["q"]["kernel"] != BASE["q"]["kernel"])
    assert partition({".*": frozen()}).sample is None


def test_stages_of_a_config_get_the_models_slots():
    node = {
        "_target_": "adaptlab.adapt.chain",
        "stages": {
            "adapter": {"_target_": "adaptlab.adapt.bottleneck", "width": 2},
            "lora": {"_target_": "adaptlab.adapt.lora", "rank": 2},
        },
    }
    built = config.instantiate(config.validate(node), fresh=MODEL.init, slots=MODEL.slots())

    @jax.jit
    def both(base: Any) -> Any:
        started = built.bind(base, built.init(KEY, base))
        moved = built.bind(base, scattered(built.init(KEY, base), 1))
        return [MODEL.apply(p, jnp.ones((1, 3), jnp.int32)) for p in (base, started, moved)]

    plain, started, moved = both(TEXT)
    np.testing.assert_allclose(started, plain, atol=1e-6)
    assert np.abs(moved - plain).max() > 0.01


def test_a_chain_stands_on_a_quantised_base():
    base = jax.device_put(quantize(jax.device_get(TEXT), Quantization("nf4", select="layers/.*/kernel", block=2)))
    both = chain([lora(2, alpha=3.0), layer_norm()])
    delta = scattered(both.init(KEY, base), 1)
    bound = both.bind(base, delta)
    ids = jnp.ones((1, 3), jnp.int32)
    np.testing.assert_allclose(MODEL.apply(bound, ids), MODEL.apply(materialize(bound), ids), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        MODEL.apply(both.bind(base, both.init(KEY, base)), ids), MODEL.apply(base, ids), rtol=1e-5, atol=1e-5
    )
    with pytest.raises(ValueError, match="layers/attention/key/kernel is a Quantized node and cannot train in full"):
        selected("layers/attention/key/kernel").init(KEY, base)
