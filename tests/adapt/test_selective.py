from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import config, leaf, tree
from adaptlab.adapt import (
    anchors,
    bitfit,
    chain,
    freeze_below,
    full,
    layer_norm,
    linear_probe,
    lora,
    materialize,
    selected,
)
from adaptlab.models import BertShape, LlamaShape, bert_classifier, language_modelling, llama
from adaptlab.train import make_objective
from tests.laws.table import scattered, text_batch

KEY = jax.random.key(0)
MODEL = llama(LlamaShape(32, 16, 3, 4, 2, 6, 20, tied=False))
BASE = scattered(jax.jit(MODEL.init)(KEY), 0)


def gradient(adaptation: Any, delta: Any) -> Any:
    objective = make_objective(language_modelling(MODEL), adaptation)
    return jax.grad(lambda d: objective(d, BASE, text_batch(0), KEY).value)(delta)


def test_the_layers_of_a_range_get_the_gradient_of_full_fine_tuning_and_delta_holds_no_others():
    part = selected(["layers/attention/.*", "norm/scale"], layers=[1, 2])
    delta = part.init(KEY, BASE)
    shapes = {path: x.shape for path, x in tree.flatten(delta).items()}
    assert shapes["1:2/layers/attention/query/kernel"] == (1, 16, 24)
    assert shapes["norm/scale"] == (16,)
    whole = tree.flatten(gradient(full(), BASE))
    for path, g in tree.flatten(gradient(part, delta)).items():
        wanted = whole[path.removeprefix("1:2/")]
        np.testing.assert_allclose(g, wanted[1:2] if path.startswith("1:2/") else wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("layers", "chosen"), [([0, 2], [0, 1]), ([1, None], [1, 2]), ([-1, None], [2])], ids=str)
def test_a_range_counts_as_slices_do_and_leaves_the_other_layers_alone(layers: Any, chosen: list[int]):
    adaptation = selected("layers/feed_forward/.*", layers=layers)
    moved = jax.tree.map(lambda x: x + 1.0, adaptation.init(KEY, BASE))
    bound = adaptation.bind(BASE, moved)
    change = (
        materialize(bound)["layers"]["feed_forward"]["up"]["kernel"] - BASE["layers"]["feed_forward"]["up"]["kernel"]
    )
    np.testing.assert_allclose(np.abs(change).mean((1, 2)), [float(i in chosen) for i in range(3)], atol=1e-6)
    assert bound["embed"]["embedding"] is BASE["embed"]["embedding"]


@pytest.mark.parametrize("transpose", [False, True])
def test_a_layer_whose_gradient_is_not_wanted_has_none_and_passes_on_that_of_its_input(transpose: bool):
    w = jax.random.normal(KEY, (2, 3, 4))
    x = jax.random.normal(KEY, (5, 4 if transpose else 3))

    def layers(x: jax.Array, w: jax.Array, on: jax.Array) -> jax.Array:
        y = [leaf.dot(x, leaf.TrainedLayers(w[i], on[i]), transpose=transpose) * (i + 1) for i in range(2)]
        return jnp.sum(jnp.stack(y) ** 2)

    on = jnp.array([False, True])
    whole = jax.grad(layers, argnums=(0, 1))(x, w, jnp.array([True, True]))
    part = jax.grad(layers, argnums=(0, 1))(x, w, on)
    np.testing.assert_allclose(part[0], whole[0], rtol=1e-5)
    np.testing.assert_allclose(part[1][1], whole[1][1], rtol=1e-5)
    assert not np.any(part[1][0])
    assert np.any(whole[1][0])


def test_freezing_below_a_layer_trains_what_lies_above_and_not_the_embeddings():
    paths = set(tree.flatten(freeze_below(2).init(KEY, BASE)))
    layers = {f"2:/{path}" for path in tree.flatten(BASE) if path.startswith("layers/")}
    assert paths == layers | {"norm/scale", "head/kernel"}


def test_a_linear_probe_trains_the_head_and_layer_norm_the_gains():
    assert set(tree.flatten(linear_probe().init(KEY, BASE))) == {"head/kernel"}
    paths = {"layers/attention_norm/scale", "layers/feed_forward_norm/scale", "norm/scale"}
    assert set(tree.flatten(layer_norm().init(KEY, BASE))) == paths


def test_bitfit_says_what_a_model_without_biases_has_instead():
    with pytest.raises(ValueError, match=r"has none. Its other vectors are .*attention_norm/scale.*layer_norm\(\)"):
        bitfit().init(KEY, BASE)
    with pytest.raises(ValueError, match="this model has none"):
        bitfit().axes(MODEL.axes())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [3, None]}, r"layers=\[3, None\] is empty: .* has the layers 0 to 2"),
        ({"layers": [1]}, r"layers=\[1\] is not \[first, stop\]"),
        ({"select": "norm/scale", "layers": [0, 1]}, r"cuts none of \['norm/scale'\]"),
        ({"select": "tail/.*"}, "Selector 'tail/.*' matches nothing"),
    ],
    ids=str,
)
def test_a_range_that_selects_nothing_is_an_error(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        selected(**{"select": "layers/.*", **options}).init(KEY, BASE)


def test_a_weight_that_is_adapted_already_cannot_be_selected():
    below = lora(2)
    bound = below.bind(BASE, below.init(KEY, BASE))
    with pytest.raises(ValueError, match=r"layers/attention/key/kernel is a LowRank node"):
        selected("layers/attention/key/kernel").init(KEY, bound)
    assert leaf.is_node(bound["layers"]["attention"]["key"]["kernel"])


def test_weights_are_anchored_where_they_started_and_factors_at_zero():
    adaptation = chain([selected("layers/attention/.*", layers=[1, None]), lora(2, select="head/.*"), layer_norm()])
    held = tree.flatten(anchors(BASE, adaptation.init(KEY, BASE)))
    for path, x in held.items():
        if "/layers/attention/" in path:
            wanted = tree.flatten(BASE)[path.removeprefix("0/1:/")][1:]
        else:
            wanted = tree.flatten(BASE)[path[2:]] if path.startswith("2/") else jnp.zeros_like(x)
        np.testing.assert_array_equal(x, wanted, err_msg=path)


def test_the_defaults_name_the_head_biases_norms_and_layers_of_an_encoder():
    model = bert_classifier(BertShape(32, width=16, depth=2, heads=4, ffn_width=20, context=12), classes=4)
    base = jax.jit(model.init)(KEY)
    chosen = {
        name: set(tree.flatten(config.instantiate(config.compose(f"adapt/{name}")["adapt"]).init(KEY, base)))
        for name in ("linear_probe", "bitfit", "layer_norm", "freeze_below", "embeddings")
    }
    paths = set(tree.flatten(base))
    assert chosen["linear_probe"] == {"classifier/kernel", "classifier/bias"}
    assert chosen["bitfit"] == {path for path in paths if path.endswith("/bias")}
    assert chosen["layer_norm"] == {p for p in paths if "norm/" in p}
    layers = {f"1:/{path}" for path in paths if path.startswith("layers/")}
    assert chosen["freeze_below"] == layers | {p for p in paths if not p.startswith("layers/") and "embed" not in p}
    assert chosen["embeddings"] == {p for p in paths if p.endswith("embed/embedding")} != set()


def test_a_penalty_on_the_distance_from_the_anchors_is_zero_at_the_start_and_pulls_back():
    adaptation = chain([selected("layers/.*", layers=[1, None]), layer_norm()])
    start = adaptation.init(KEY, BASE)

    def penalty(delta: Any) -> jax.Array:
        moved = jax.tree.map(jnp.subtract, delta, anchors(BASE, delta))
        return tree.dot(moved, moved)

    assert float(penalty(start)) == 0.0
    assert float(penalty(jax.tree.map(lambda x: x + 1.0, start))) == pytest.approx(tree.count(start), rel=1e-5)
