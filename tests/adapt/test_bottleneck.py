from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf, tree
from adaptlab.adapt import bottleneck, compacter, materialize
from adaptlab.models import Slot
from tests.laws.table import MODELS, scattered

SLOTS = {
    "layers/attention_adapter": Slot("residual", (2, 6), ("layers", "embed")),
    "layers/feed_forward_adapter": Slot("residual", (2, 6), ("layers", "embed")),
    "prompt": Slot("prompt", (6,), ("embed",)),
}
BASE = {"layers": {"feed_forward": {"kernel": jnp.ones((2, 6, 6))}}}
KEY = jax.random.key(0)
ACTIVATIONS = {"relu": lambda x: np.maximum(x, 0), "tanh": np.tanh, "silu": lambda x: x / (1 + np.exp(-x))}


def plain(make: Any) -> Any:
    """Without the checker of annotations, which would see wrong values first."""
    return getattr(make, "__wrapped__", make)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("placement", ["pfeiffer", "parallel"])
def test_an_adapter_adds_a_scaled_bottleneck_of_the_output_or_of_the_input(placement: Any, activation: str):
    adaptation = bottleneck(3, placement=placement, activation=activation, scale=2.5, slots=SLOTS)
    delta = scattered(adaptation.init(KEY, BASE), 1)
    stacked = adaptation.bind(BASE, delta)["layers"]["feed_forward_adapter"]
    y, x = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    for layer in range(2):
        d = {name: np.asarray(z[layer]) for name, z in delta["layers"]["feed_forward_adapter"].items()}
        h = (x if placement == "parallel" else y) @ d["down"] + d["down_bias"]
        wanted = y + 2.5 * (ACTIVATIONS[activation](h) @ d["up"] + d["up_bias"])
        got = jax.tree.map(lambda z, layer=layer: z[layer], stacked)(jnp.asarray(y), jnp.asarray(x))
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "paths"),
    [
        ({"placement": "houlsby"}, ["layers/attention_adapter", "layers/feed_forward_adapter"]),
        ({"placement": "pfeiffer"}, ["layers/feed_forward_adapter"]),
        ({"placement": "parallel"}, ["layers/feed_forward_adapter"]),
        ({"placement": "parallel", "select": "layers/attention_.*"}, ["layers/attention_adapter"]),
    ],
    ids=str,
)
def test_a_placement_is_where_the_paper_puts_it(options: dict[str, Any], paths: list[str]):
    delta = bottleneck(3, **options, slots=SLOTS).init(KEY, BASE)
    assert {path.rpartition("/")[0] for path in tree.flatten(delta)} == {*paths}


def test_a_slot_draws_the_same_whatever_else_is_selected():
    one, both = (bottleneck(3, placement=p, slots=SLOTS).init(KEY, BASE)["layers"] for p in ("pfeiffer", "houlsby"))
    assert tree.digest(one["feed_forward_adapter"]) == tree.digest(both["feed_forward_adapter"])
    assert tree.digest(both["attention_adapter"]) != tree.digest(both["feed_forward_adapter"])


def test_every_slot_of_the_llama_is_read():
    row = MODELS["llama_tied"]
    base, batch = row.model.init(KEY), row.batch(0)
    outputs = []
    for path in ("layers/attention_adapter", "layers/feed_forward_adapter"):
        for placement in ("houlsby", "parallel"):
            adaptation = bottleneck(3, placement=placement, select=path, slots=row.model.slots())
            bound = adaptation.bind(base, scattered(adaptation.init(KEY, base), 1))
            outputs.append(np.asarray(row.outputs(bound, batch)))
    outputs.append(np.asarray(row.outputs(base, batch)))
    assert all(np.abs(a - b).max() > 0.01 for i, a in enumerate(outputs) for b in outputs[:i])


def test_an_adapter_cannot_be_merged_and_says_what_can():
    adaptation = bottleneck(3, slots=SLOTS)
    with pytest.raises(ValueError, match=r"Bottleneck adds computation .* cannot be merged; .*\(lora, ia3\)"):
        materialize(adaptation.bind(BASE, adaptation.init(KEY, BASE)))


def test_two_adapters_in_one_slot_are_an_error():
    adaptation = bottleneck(3, slots=SLOTS)
    delta = adaptation.init(KEY, BASE)
    with pytest.raises(ValueError, match=r"slots \['layers/attention_adapter', .*already hold \['Bottleneck'"):
        adaptation.bind(adaptation.bind(BASE, delta), delta)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width=0 must be at least 1; use frozen"),
        ({"placement": "between"}, r"placement='between' is not one of \['houlsby', 'parallel', 'pfeiffer'\]"),
        ({"activation": "loud"}, r"activation='loud' is not one of \['gelu', 'identity', 'relu', 'silu', 'tanh'\]"),
        ({"select": "layers/adapter"}, "(?s)'layers/adapter' matches nothing.*layers/attention_adapter"),
        ({"slots": {"prompt": SLOTS["prompt"]}}, r"the model has none; it declares {'prompt': 'prompt'}.*lora"),
    ],
    ids=str,
)
def test_what_cannot_be_adapted_is_an_error(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        plain(bottleneck)(**({"slots": SLOTS} | options))


def test_a_kronecker_sum_is_the_matrix_it_stands_for():
    rng = np.random.default_rng(0)
    rules, left, right = (rng.normal(size=s).astype(np.float32) for s in ((2, 2, 2), (2, 3, 1), (2, 1, 4)))
    w = np.sum([np.kron(rules[n], left[n] @ right[n]) for n in range(2)], axis=0)
    node = leaf.KroneckerSum(*map(jnp.asarray, (rules, left, right)))
    np.testing.assert_allclose(leaf.dense(node), w, rtol=1e-5, atol=1e-5)
    x, z = (jnp.asarray(rng.normal(size=(3, 5, n)), jnp.float32) for n in (6, 8))
    np.testing.assert_allclose(leaf.dot(x, node), x @ w, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(leaf.dot(z, node, transpose=True), z @ w.T, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(leaf.take(node, jnp.asarray([4, 0]), jnp.float32), w[[4, 0]], rtol=1e-5, atol=1e-5)


def test_a_compacter_is_a_bottleneck_of_kronecker_sums_with_rules_in_common():
    adaptation = compacter(4, terms=2, rank=1, activation="tanh", scale=1.5, slots=SLOTS)
    delta = scattered(adaptation.init(KEY, BASE), 1)
    rules, own = (jax.tree.map(np.asarray, x) for x in (delta["compacter"]["rules"], delta["layers"]))
    y = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    for path in ("attention_adapter", "feed_forward_adapter"):
        d = own[path]
        down, up = (
            np.sum([np.kron(rules[n], d[f"{end}_left"][1][n] @ d[f"{end}_right"][1][n]) for n in range(2)], axis=0)
            for end in ("down", "up")
        )
        wanted = y + 1.5 * (np.tanh(y @ down + d["down_bias"][1]) @ up + d["up_bias"][1])
        node = jax.tree.map(lambda z: z[1], adaptation.bind(BASE, delta)["layers"][path])
        np.testing.assert_allclose(node(jnp.asarray(y), jnp.asarray(y)), wanted, rtol=1e-5, atol=1e-5)


def test_a_compacters_first_matrices_have_the_variance_of_a_bottlenecks():
    slots = {"adapter": Slot("residual", (128,), ("embed",))}
    delta = compacter(64, terms=4, rank=2, select=".*", slots=slots).init(KEY, {})
    own = delta["adapter"]
    down = leaf.KroneckerSum(delta["compacter"]["rules"], own["down_left"], own["down_right"])
    wanted = bottleneck(64, select=".*", slots=slots).init(KEY, {})["adapter"]["down"]
    np.testing.assert_allclose(np.std(leaf.dense(down)), np.std(wanted), rtol=0.3)
    assert not np.any(own["up_right"])


def test_terms_must_divide_the_widths():
    with pytest.raises(ValueError, match=r"terms=4 and rank=1 must .* divide width=64 and the model's \{6\}"):
        compacter(64, terms=4, slots=SLOTS)
