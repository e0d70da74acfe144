from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import config, leaf, tree
from adaptlab.adapt import (
    bottleneck,
    chain,
    full,
    ia3,
    layer_norm,
    load_delta,
    loaded,
    lora,
    materialize,
    prepared,
    save_delta,
    share,
    weighted,
)
from adaptlab.models import LlamaShape, llama
from tests.laws.table import scattered

KEY = jax.random.key(0)
MODEL = llama(LlamaShape(32, 16, 2, 4, 2, 6, 20))
BASE = scattered(jax.jit(MODEL.init)(KEY), 0)
LORA = {"_target_": "adaptlab.adapt.lora", "rank": 2, "alpha": 3.0}
TOKENS = jnp.ones((2, 5), jnp.int32)


@pytest.fixture(scope="module")
def files(tmp_path_factory: Any) -> list[str]:
    folder = tmp_path_factory.mktemp("deltas")
    for i, adapt in enumerate([LORA, {"_target_": "adaptlab.adapt.layer_norm"}]):
        delta = scattered(config.instantiate(adapt).init(KEY, BASE), i)
        save_delta(folder / f"{i}.safetensors", delta, adapt=adapt, base="0" * 64)
    return [str(folder / f"{i}.safetensors") for i in range(2)]


def saved(path: str) -> Any:
    one = load_delta(path)
    return materialize(config.instantiate(one.adapt).bind(BASE, jax.tree.map(jnp.asarray, one.delta)))


def assert_close(got: Any, wanted: Any) -> None:
    for path, x in tree.flatten(wanted).items():
        np.testing.assert_allclose(tree.flatten(got)[path], x, rtol=1e-4, atol=1e-5, err_msg=path)


def test_the_sum_is_that_of_the_weighted_changes_whatever_the_nodes_are():
    parts: dict[str, Any] = {
        "low_rank": lora(2, alpha=3.0),
        "other": lora(3, alpha=1.0, select="layers/attention/.*kernel"),
        "scaled": ia3(),
        "norms": layer_norm(),
    }
    weights = dict(zip(parts, [0.5, -1.0, 2.0, 0.25], strict=True))
    both = weighted({name: share(one, weight=weights[name]) for name, one in parts.items()})
    delta = scattered(both.init(KEY, BASE), 1)
    changed = [(weights[n], materialize(one.bind(BASE, delta[n]))) for n, one in parts.items()]
    wanted = BASE
    for weight, model in changed:
        wanted = jax.tree.map(lambda out, x, b, c=weight: out + c * (x - b), wanted, model, BASE)
    bound = both.bind(BASE, delta)
    assert_close(materialize(bound), wanted)
    np.testing.assert_allclose(MODEL.apply(bound, TOKENS), MODEL.apply(wanted, TOKENS), rtol=1e-3, atol=1e-4)


def test_adapters_of_a_kind_start_differently_and_one_of_weight_one_is_itself():
    both = weighted({"one": lora(2), "two": lora(2)})
    delta = both.init(KEY, BASE)
    assert tree.digest(delta["one"]) != tree.digest(delta["two"])
    alone = lora(2, alpha=3.0)
    own = scattered(alone.init(KEY, BASE), 1)
    assert_close(
        materialize(weighted({"a": lora(2, alpha=3.0)}).bind(BASE, {"a": own})), materialize(alone.bind(BASE, own))
    )


def test_saved_adapters_are_constants_of_the_prepared_base_and_their_weights_are_arguments(files: list[str]):
    def make(weight: Any) -> Any:
        first, second = (loaded(path) for path in files)
        return weighted(
            {"first": share(first, weight=weight), "second": second, "new": lora(1, select="layers/.*/kernel")}
        )

    base = prepared(make(1.0), BASE)
    assert_close(materialize(base), BASE)
    delta = make(1.0).init(KEY, base)
    assert tree.count(delta["first"]) == tree.count(delta["second"]) == 0

    def traced(weight: Any, base: Any, delta: Any) -> jax.Array:
        return MODEL.apply(make(weight).bind(base, delta), TOKENS)

    logits = jax.jit(traced)

    for weight in (0.5, -1.0):
        parts = [(weight, saved(files[0])), (1.0, saved(files[1]))]
        wanted = BASE
        for c, model in parts:
            wanted = jax.tree.map(lambda out, x, b, c=c: out + c * (x - b), wanted, model, BASE)
        np.testing.assert_allclose(logits(weight, base, delta), MODEL.apply(wanted, TOKENS), rtol=1e-3, atol=1e-4)
    constants = [c.shape for c in jax.make_jaxpr(traced)(1.0, base, delta).consts if np.size(c) > 100]
    assert not constants


def test_a_saved_adapter_is_adapted_further_or_trained_on(files: list[str]):
    on_top = chain([loaded(files[0]), lora(1)])
    base = prepared(on_top, BASE)
    assert_close(materialize(on_top.bind(base, on_top.init(KEY, base))), saved(files[0]))
    going_on = loaded(files[0], train=True)
    assert tree.digest(going_on.init(KEY, BASE)) == load_delta(files[0]).digest


def test_a_base_that_was_not_prepared_is_an_error(files: list[str]):
    with pytest.raises(ValueError, match="bound to a base that was not prepared for it; in a chain it must come first"):
        loaded(files[0]).bind(BASE, {})


def test_slots_and_names_that_do_not_fit_are_errors(tmp_path: Path):
    added = weighted({"one": bottleneck(2, slots=MODEL.slots())})
    with pytest.raises(ValueError, match=r"an adapter adds computation at .*attention_adapter"):
        added.bind(BASE, added.init(KEY, BASE))
    with pytest.raises(ValueError, match="names without '/'"):
        weighted({"a/b": full()})
    with pytest.raises(ValueError, match="There is no delta at"):
        loaded(str(tmp_path / "none.safetensors"))


def test_weights_of_a_config_are_numbers_of_the_program():
    node = config.validate(config.compose("adapt/weighted")["adapt"])
    numbers = config.split(node)[1]
    assert {"adapters.attention.weight", "adapters.feed_forward.weight"} <= numbers.keys()
    assert leaf.is_node(
        config.instantiate(node).bind(BASE, config.instantiate(node).init(KEY, BASE))["layers"]["attention"]["key"][
            "kernel"
        ]
    )
