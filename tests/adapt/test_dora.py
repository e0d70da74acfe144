from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf, tree
from adaptlab.adapt import chain, dora, lora, materialize
from tests.laws.table import scattered

BASE = scattered(
    {"layers": {"q": {"kernel": jnp.zeros((2, 6, 4))}, "norm": {"scale": jnp.zeros((2, 6))}}}, 0, scale=1.0
)
W = np.asarray(BASE["layers"]["q"]["kernel"])
KEY = jax.random.key(0)


def test_magnitudes_start_as_the_norms_of_the_columns_of_every_layer():
    magnitude = dora(2).init(KEY, BASE)["layers"]["q"]["kernel"]["magnitude"]
    np.testing.assert_allclose(magnitude, np.linalg.norm(W, axis=-2), rtol=1e-6)


def test_the_merged_matrix_is_the_published_formula():
    adaptation = dora(2, alpha=3.0)
    delta = scattered(adaptation.init(KEY, BASE), 1)
    merged = materialize(adaptation.bind(BASE, delta))["layers"]["q"]["kernel"]
    a, b, m = (np.asarray(delta["layers"]["q"]["kernel"][name]) for name in ("a", "b", "magnitude"))
    v = W + 1.5 * a @ b
    np.testing.assert_allclose(merged, m[:, None] * v / np.linalg.norm(v, axis=-2, keepdims=True), rtol=1e-4)


def test_factors_are_drawn_as_loras():
    ours, plain = dora(2).init(KEY, BASE), lora(2).init(KEY, BASE)
    for name in "ab":
        np.testing.assert_array_equal(ours["layers"]["q"]["kernel"][name], plain["layers"]["q"]["kernel"][name])


def test_factors_do_not_change_the_lengths_of_columns():
    adaptation = dora(2)
    delta = adaptation.init(KEY, BASE)
    kernel = delta["layers"]["q"]["kernel"]
    turned = {"layers": {"q": {"kernel": kernel | {"b": kernel["b"] + 1.0}}}}
    merged = materialize(adaptation.bind(BASE, turned))["layers"]["q"]["kernel"]
    np.testing.assert_allclose(np.linalg.norm(merged, axis=-2), np.linalg.norm(W, axis=-2), rtol=1e-5)
    assert np.abs(merged - W).max() > 0.1


def test_an_effective_rank_is_the_adaptation_of_that_rank():
    wide, narrow = dora(4, effective_rank=2.0), dora(2)
    delta = scattered(wide.init(KEY, BASE), 1)
    cut = {"a": lambda x: x[..., :2], "b": lambda x: x[..., :2, :], "e": lambda x: x}
    small = tree.map_with_path(lambda path, x: cut[path[-1]](x), delta)
    got, wanted = (materialize(a.bind(BASE, d))["layers"]["q"]["kernel"] for a, d in ((wide, delta), (narrow, small)))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_what_is_adapted_already_can_be_decomposed():
    adaptation = chain({"inner": lora(2), "outer": dora(2)})
    delta = scattered(adaptation.init(KEY, BASE), 1)
    node = adaptation.bind(BASE, delta)["layers"]["q"]["kernel"]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 6)), jnp.float32)
    y = jax.vmap(lambda layer: leaf.dot(x, layer))(node)
    np.testing.assert_allclose(y, np.asarray(x) @ np.asarray(leaf.dense(node)), rtol=1e-4, atol=1e-4)


def test_a_magnitude_lies_on_a_mesh_as_the_outputs_do():
    axes = dora(2).axes({"layers": {"q": {"kernel": ("layers", "embed", "heads")}}})
    assert axes["layers"]["q"]["kernel"] == {
        "a": ("layers", "embed", "rank"),
        "b": ("layers", "rank", "heads"),
        "magnitude": ("layers", "heads"),
    }


def test_a_vector_is_an_error():
    with pytest.raises(ValueError, match=r"dora selects 'layers/norm/scale'"):
        dora(select="layers/norm/scale").init(KEY, BASE)


def gradient(detach: bool) -> Any:
    adaptation = dora(2, detach_norm=detach)
    delta = scattered(adaptation.init(KEY, BASE), 1)

    def loss(delta: Any) -> jax.Array:
        return jnp.sum(materialize(adaptation.bind(BASE, delta))["layers"]["q"]["kernel"] ** 3)

    return jax.grad(loss)(delta)["layers"]["q"]["kernel"]


def test_a_detached_norm_changes_the_gradient_of_the_factors_and_not_of_the_magnitude():
    whole, detached = gradient(False), gradient(True)
    np.testing.assert_allclose(whole["magnitude"], detached["magnitude"], rtol=1e-5)
    assert np.abs(whole["b"] - detached["b"]).max() > 0.1
