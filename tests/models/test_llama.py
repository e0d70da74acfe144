from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import tree
from adaptlab.models import REMAT_POLICIES, LlamaShape, Model, llama
from adaptlab.models.dense import dense_attention
from adaptlab.models.mask import Mask
from adaptlab.models.positions import rotary, rotary_angles
from tests.laws.table import scattered

SHAPE = LlamaShape(vocab_size=24, width=16, depth=2, heads=4, kv_heads=2, head_width=6, ffn_width=20, tied=False)
MODEL = llama(SHAPE)
PARAMS = scattered(jax.jit(MODEL.init)(jax.random.key(0)), 0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 24, (2, 7), np.int32))


def logits(model: Model = MODEL, tokens: Any = TOKENS, **inputs: Any) -> jax.Array:
    return jax.jit(model.apply)(PARAMS, tokens, **inputs)


def sensitivity(model: Model, segments: Any = None) -> np.ndarray:
    """How much the logits at t move with the embedding at s: `[T, T]`, from the gradient of one logit per t."""
    T = TOKENS.shape[1]
    # Position s gets a token of its own, so that a gradient for that row of the table is a gradient for position s.
    tokens = jnp.arange(T, dtype=jnp.int32)[None]

    def at(embedding: jax.Array) -> jax.Array:
        params = PARAMS | {"embed": {"embedding": embedding}}
        return model.apply(params, tokens, segments=segments)[0, :, 3]

    return np.abs(jax.jit(jax.jacrev(at))(PARAMS["embed"]["embedding"])).sum(-1)[:, :T]


def test_future_tokens_get_no_gradient():
    moved = sensitivity(MODEL)
    assert np.all(moved[np.triu_indices(7, 1)] == 0)
    assert np.all(moved[np.tril_indices(7)] > 0)


def test_tokens_of_other_segments_get_no_gradient():
    moved = sensitivity(MODEL, segments=jnp.asarray([[1, 1, 1, 2, 2, 0, 0]]))
    same = np.array([1, 1, 1, 2, 2, 0, 0])
    seen = np.tril(same[:, None] == same[None, :])
    np.testing.assert_array_equal(moved > 0, seen)


def test_packed_rows_equal_separate_rows():
    positions = jnp.asarray([[0, 1, 2, 0, 1, 2, 3]])
    segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 2]])
    packed = logits(tokens=TOKENS[:1], segments=segments, positions=positions)
    for part in (slice(0, 3), slice(3, 7)):
        np.testing.assert_allclose(packed[:, part], logits(tokens=TOKENS[:1, part]), rtol=1e-5, atol=1e-5)


def test_only_differences_of_positions_matter():
    positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
    np.testing.assert_allclose(logits(positions=positions + 13), logits(), rtol=1e-4, atol=1e-4)
    assert np.abs(logits(positions=positions * 2) - logits()).max() > 0.01


def test_positions_start_at_zero_by_default():
    positions = jnp.broadcast_to(jnp.arange(7), (2, 7))
    np.testing.assert_array_equal(logits(positions=positions), logits())


def test_rotation_keeps_lengths_and_turns_each_pair_by_its_own_angle():
    x = np.random.default_rng(1).normal(size=(1, 3, 1, 4)).astype(np.float32)
    turned = np.asarray(rotary(jnp.asarray(x), *rotary_angles(jnp.asarray([[0, 1, 5]]), 4, 100.0)))
    pairs = x[0, :, 0, :2] + 1j * x[0, :, 0, 2:]
    angles = np.array([[0, 1, 5]]).T * np.array([1.0, 0.1])
    wanted = pairs * np.exp(1j * angles)
    np.testing.assert_allclose(turned[0, :, 0, :2] + 1j * turned[0, :, 0, 2:], wanted, rtol=1e-5, atol=1e-6)


def test_cosines_are_computed_once_however_many_layers_read_them() -> None:
    """XLA merges a cosine with each of its readers; on a CPU that was a tenth of a measurement."""

    def layers(positions_BT: jax.Array, x_BTHK: jax.Array) -> jax.Array:
        angles = rotary_angles(positions_BT, x_BTHK.shape[-1], 100.0)
        for _ in range(4):
            x_BTHK = jnp.einsum("bthk,kj->bthj", rotary(x_BTHK, *angles), jnp.ones((4, 4)))
        return x_BTHK

    compiled = jax.jit(layers).lower(jnp.zeros((1, 8), jnp.int32), jnp.zeros((1, 8, 2, 4))).compile()
    assert compiled.as_text().count(" cosine(") == 1


def test_attention_equals_the_formula_head_by_head():
    rng = np.random.default_rng(2)
    q, k, v = (rng.normal(size=(2, 5, heads, 6)).astype(np.float32) for heads in (4, 2, 2))
    segments = np.array([[1, 1, 2, 2, 2], [1, 1, 1, 1, 0]])
    mask = Mask(jnp.asarray(segments), 5, causal=True).dense()
    got = dense_attention(*map(jnp.asarray, (q, k, v)), mask)
    for b in range(2):
        for h in range(4):
            scores = q[b, :, h] @ k[b, :, h // 2].T / np.sqrt(6)
            scores = np.where(mask[b], scores, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            np.testing.assert_allclose(got[b, :, h], weights @ v[b, :, h // 2], rtol=1e-5, atol=1e-5)


def gradient(model: Model) -> Any:
    def loss(params: Any) -> jax.Array:
        return jnp.mean(jnp.square(model.apply(params, TOKENS)))

    return jax.jit(jax.grad(loss))(PARAMS)


@pytest.fixture(scope="module")
def plain_gradient() -> Any:
    return gradient(MODEL)


@pytest.mark.parametrize("options", [*({"remat": r} for r in REMAT_POLICIES if r != "none"), {"unroll": 2}], ids=str)
def test_how_layers_are_run_does_not_change_the_gradient(options: Any, plain_gradient: Any):
    got = tree.flatten(gradient(llama(SHAPE, **options)))
    for path, wanted in tree.flatten(plain_gradient).items():
        np.testing.assert_allclose(got[path], wanted, rtol=1e-5, atol=1e-6, err_msg=path)


def test_full_rematerialisation_multiplies_again_what_none_keeps():
    def products(remat: str) -> int:
        model = llama(SHAPE, remat=remat)
        return str(jax.make_jaxpr(jax.grad(lambda p: jnp.sum(model.apply(p, TOKENS))))(PARAMS)).count("dot_general")

    assert products("full") > products("none")


def test_bfloat16_computes_coarsely_over_float32_parameters():
    half = llama(SHAPE, dtype="bfloat16")
    assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0)))} == {jnp.dtype("float32")}
    coarse, fine = logits(half), logits()
    assert coarse.dtype == jnp.float32
    error = np.abs(coarse - fine).max() / np.abs(fine).max()
    assert 1e-5 < error < 3e-2
    assert "bf16" in str(jax.make_jaxpr(half.apply)(PARAMS, TOKENS))


def test_a_tied_head_is_the_embedding():
    tied = llama(LlamaShape(24, 16, 2, 4, 2, 6, 20, tied=True))
    params = {k: v for k, v in PARAMS.items() if k != "head"}
    untied = PARAMS | {"head": {"kernel": PARAMS["embed"]["embedding"].T}}
    assert "head" not in jax.eval_shape(tied.init, jax.random.key(0))
    got, wanted = jax.jit(tied.apply)(params, TOKENS), jax.jit(MODEL.apply)(untied, TOKENS)
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_axes_name_every_axis_of_every_parameter():
    axes = tree.flatten(MODEL.axes(), is_leaf=lambda x: isinstance(x, tuple))
    assert {p: len(names) for p, names in axes.items()} == {p: x.ndim for p, x in tree.flatten(PARAMS).items()}
    assert axes["layers/attention/query/kernel"] == ("layers", "embed", "heads")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: llama(SHAPE, dtype="float64"), r"dtype='float64'.*bfloat16"),
        (lambda: llama(SHAPE, remat="some"), r"remat='some'.*dots"),
        (lambda: LlamaShape(24, 16, 2, 4, 3, 6, 20), r"heads=4 is not a multiple of kv_heads=3"),
        (lambda: LlamaShape(24, 16, 2, 4, 2, 5, 20), r"head_width=5 is odd"),
    ],
)
def test_impossible_models_are_errors_when_they_are_made(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()
