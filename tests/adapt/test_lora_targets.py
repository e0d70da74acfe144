"""What LoRA can be put on besides a layer's matrices: embeddings, heads, experts and convolutions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf, tree
from adaptlab.adapt import lora, lora_conv, materialize, partition
from adaptlab.models import LlamaShape, llama
from tests.laws.table import scattered

KEY = jax.random.key(0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 16, (2, 5)))


@pytest.mark.parametrize(
    ("tied", "select"), [(True, "embed/embedding"), (False, "embed/embedding"), (False, "head/kernel")], ids=str
)
def test_embedding_and_head_are_adapted_whether_tied_or_not(tied: bool, select: str):
    model = llama(LlamaShape(16, width=8, depth=1, heads=2, kv_heads=1, head_width=4, ffn_width=10, tied=tied))
    base = scattered(model.init(KEY), 0)
    adaptation = lora(2, select=select)

    @jax.jit
    def outputs(base: Any, delta: Any) -> Any:
        bound = adaptation.bind(base, delta)
        return [model.apply(params, TOKENS) for params in (bound, materialize(bound), base)]

    start = adaptation.init(KEY, base)
    same, _, plain = outputs(base, start)
    np.testing.assert_allclose(same, plain, atol=1e-6)
    bound, merged, plain = outputs(base, scattered(start, 1))
    np.testing.assert_allclose(bound, merged, rtol=1e-4, atol=1e-4)
    assert np.abs(bound - plain).max() > 0.01


def test_every_expert_of_every_layer_has_factors_of_its_own():
    L, E, D, F, R = 2, 3, 6, 4, 2
    base = scattered({"layers": {"experts": {"kernel": jnp.zeros((L, E, D, F))}}}, 0)
    adaptation = lora(R, alpha=3.0)
    delta = scattered(adaptation.init(KEY, base), 1)
    kernel = delta["layers"]["experts"]["kernel"]
    assert (kernel["a"].shape, kernel["b"].shape) == ((L, E, D, R), (L, E, R, F))
    node = adaptation.bind(base, delta)["layers"]["experts"]["kernel"]
    x_ED = jnp.asarray(np.random.default_rng(2).normal(size=(E, D)), jnp.float32)

    def layer(x_ED: jax.Array, experts: Any) -> Any:
        return x_ED, jax.vmap(leaf.dot)(x_ED, experts)

    _, y_LEF = jax.lax.scan(layer, x_ED, node)
    w, a, b = (np.asarray(x) for x in (base["layers"]["experts"]["kernel"], kernel["a"], kernel["b"]))
    np.testing.assert_allclose(y_LEF, np.einsum("ed,ledf->lef", x_ED, w + 1.5 * a @ b), rtol=1e-4, atol=1e-5)
    axes = adaptation.axes({"layers": {"experts": {"kernel": ("layers", "experts", "embed", "ffn")}}})
    assert axes["layers"]["experts"]["kernel"]["b"] == ("layers", "experts", "rank", "ffn")


CONVOLUTIONS = {"conv": {"kernel": jnp.zeros((2, 3, 2, 4, 5))}, "dense": {"kernel": jnp.zeros((2, 5, 4))}}


@pytest.mark.parametrize(("scaling", "scale"), [("standard", 1.5), ("rank_stabilised", 3.0 / 2**0.5)])
def test_a_convolution_is_adapted_as_the_matrix_of_its_taps(scaling: Any, scale: float):
    base = scattered(CONVOLUTIONS, 0)
    adaptation = lora_conv(2, alpha=3.0, select="conv/kernel", scaling=scaling)
    start = adaptation.init(KEY, base)
    np.testing.assert_array_equal(materialize(adaptation.bind(base, start))["conv"]["kernel"], base["conv"]["kernel"])
    delta = scattered(start, 1)
    assert tree.count(delta) == 2 * 2 * (3 * 2 * 4 + 5)
    a, b = (np.asarray(delta["conv"]["kernel"][name]) for name in "ab")
    merged = materialize(adaptation.bind(base, delta))["conv"]["kernel"]
    change = np.asarray(merged - base["conv"]["kernel"]).reshape(2, 24, 5)
    np.testing.assert_allclose(change, scale * a.reshape(2, 24, 2) @ b, rtol=1e-4, atol=1e-5)


def test_a_convolutions_a_starts_as_pytorchs_does():
    base = {"conv": {"kernel": jnp.zeros((3, 3, 20, 5))}}
    a = lora_conv(50, select=".*").init(KEY, base)["conv"]["kernel"]["a"]
    bound = (3 * 3 * 20) ** -0.5
    assert np.abs(a).max() <= bound
    np.testing.assert_allclose(np.var(a), bound**2 / 3, rtol=0.05)


def test_an_effective_rank_of_a_convolution_is_the_adaptation_of_that_rank():
    base = scattered(CONVOLUTIONS, 0)
    wide, narrow = (lora_conv(4, effective_rank=2.0, select="conv/.*"), lora_conv(2, select="conv/.*"))
    delta = scattered(wide.init(KEY, base), 1)
    cut = {"a": lambda x: x[..., :2], "b": lambda x: x[..., :2, :]}
    small = tree.map_with_path(lambda path, x: cut[path[-1]](x), delta)
    got, wanted = (materialize(a.bind(base, d))["conv"]["kernel"] for a, d in ((wide, delta), (narrow, small)))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_convolutions_and_matrices_are_adapted_side_by_side():
    base = scattered(CONVOLUTIONS, 0)
    adaptation = partition({"conv/kernel": lora_conv(2, select=".*"), "dense/kernel": lora(2, select=".*")})
    bound = adaptation.bind(base, adaptation.init(KEY, base))
    assert isinstance(bound["conv"]["kernel"], leaf.LowRankConv)
    assert isinstance(bound["dense"]["kernel"], leaf.LowRank)
    axes = adaptation.axes({"conv": {"kernel": ("layers", None, None, "in", "out")}, "dense": {"kernel": (None,) * 3}})
    assert axes["conv"]["kernel"] == {"a": ("layers", None, None, "in", "rank"), "b": ("layers", "rank", "out")}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0, "select": ".*"}, "rank=0 must be at least 1"),
        ({"select": "dense/kernel"}, r"'dense/kernel' of shape \(2, 5, 4\), not \[h, w, C, O\]; lora adapts matrices"),
    ],
    ids=str,
)
def test_what_is_no_convolution_is_an_error(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        lora_conv(**options).init(KEY, CONVOLUTIONS)
