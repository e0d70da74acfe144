"""Groups by pattern, their combination, and the configs of all groups."""

import jax
import numpy as np
import pytest

from adaptlab import config, tree
from adaptlab.adapt import lora
from adaptlab.optim.group_depth import by_depth, freeze_below
from adaptlab.optim.group_rules import by_pattern, combine, everywhere, group, no_decay
from adaptlab.optim.group_table import group_table
from adaptlab.optim.groups import add_decayed_weights
from tests.optim.grouped import GRADS, MODEL, PARAMS, values


def test_patterns_take_paths_in_order():
    groups = by_pattern(
        {
            "layers/.*norm/.*": {"decay": 0.0},
            "layers/.*": group(0.5, start=0.25),
            "embed/.*": {"frozen": True},
            ".*": {},
        }
    )
    assert values(groups.rate(PARAMS)) == {
        "embed/embedding": [1],
        "layers/ffn/kernel": [0.5],
        "layers/ffn_norm/scale": [1],
        "norm/scale": [1],
    }
    assert values(groups.decay(PARAMS))["layers/ffn_norm/scale"] == [0]
    assert values(groups.start(PARAMS, 10)) == {
        "embed/embedding": [float("inf")],
        "layers/ffn/kernel": [2],
        "layers/ffn_norm/scale": [0],
        "norm/scale": [0],
    }


def test_patterns_must_bite_and_cover():
    with pytest.raises(ValueError, match=r"'attention/.\*' matches nothing[\s\S]*layers/ffn/kernel"):
        by_pattern({"attention/.*": group(), ".*": group()}).rate(PARAMS)
    with pytest.raises(ValueError, match=r"covers no \['embed/embedding', 'norm/scale'\]"):
        by_pattern({"layers/.*": group()}).start(PARAMS, 10)
    with pytest.raises(ValueError, match="matches nothing"):
        no_decay("head/.*").decay(PARAMS)


def test_norms_and_biases_do_not_decay():
    base = jax.eval_shape(MODEL.init, jax.random.key(0))
    spared = [path for path, x in values(no_decay().decay(base)).items() if x == [0.0]]
    assert spared == ["layers/attention_norm/scale", "layers/feed_forward_norm/scale", "norm/scale"]
    low_rank = jax.eval_shape(lora(2).init, jax.random.key(0), base)
    assert all(x == [1.0] for x in values(no_decay().decay(low_rank)).values())

    transform = add_decayed_weights(0.5, no_decay())
    updates, _ = transform.update(GRADS[0], transform.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["norm"]["scale"], GRADS[0]["norm"]["scale"])
    kernel = GRADS[0]["layers"]["ffn"]["kernel"] + 0.5 * PARAMS["layers"]["ffn"]["kernel"]
    np.testing.assert_allclose(updates["layers"]["ffn"]["kernel"], kernel, rtol=1e-6)


def test_combining_multiplies_rates_and_decays_and_takes_the_latest_start():
    both = combine([by_depth(2.0), by_pattern({".*": group(0.5, decay=0.1, start=0.5)}), freeze_below(1), no_decay()])
    assert values(both.rate(PARAMS))["layers/ffn/kernel"] == [0.125, 0.25, 0.5]
    assert values(both.start(PARAMS, 10))["layers/ffn/kernel"] == [float("inf"), 5, 5]
    decays = values(both.decay(PARAMS))
    assert decays["layers/ffn_norm/scale"] == [0]
    np.testing.assert_allclose(decays["layers/ffn/kernel"], 0.1)
    assert values(combine([]).rate(PARAMS)) == values(everywhere().rate(PARAMS))


YAMLS = sorted(path.stem for path in (config.conf_dir() / "groups").glob("*.yaml"))


@pytest.mark.parametrize("name", YAMLS)
def test_a_yaml_makes_groups_that_fit_a_llama(name: str):
    node = config.validate(config.compose(f"groups/{name}")["groups"])
    assert config.validate(node) == node
    groups = config.instantiate(node)
    base = jax.eval_shape(MODEL.init, jax.random.key(0))
    if name == "lora_plus":  # its groups are factors
        base = jax.eval_shape(lora(2).init, jax.random.key(0), base)
    rows = group_table(groups, base, 100)
    assert sum(row.parameters for row in rows) == tree.count(base)
    skeleton, numbers = config.split(node)
    traced = jax.jit(lambda n: config.instantiate(config.fill(skeleton, n)).rate(base))
    jax.tree.map(np.testing.assert_allclose, jax.device_get(traced(numbers)), jax.device_get(groups.rate(base)))


def test_there_is_a_yaml_for_each_way_of_grouping():
    assert {"by_depth", "by_pattern", "freeze_below", "gradual_unfreezing", "mup", "no_decay", "ulmfit"} <= set(YAMLS)
