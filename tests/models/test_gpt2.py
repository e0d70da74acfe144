from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import tree
from adaptlab.adapt import bottleneck, prefix, prompt
from adaptlab.models import GPT2Shape, Model, gpt2
from tests.laws.table import scattered

SHAPE = GPT2Shape(vocab_size=24, width=16, depth=2, heads=4, ffn_width=20, context=12)
MODEL = gpt2(SHAPE)
PARAMS = scattered(jax.jit(MODEL.init)(jax.random.key(0)), 0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 24, (2, 7), np.int32))


def logits(model: Model = MODEL, tokens: Any = TOKENS, **inputs: Any) -> np.ndarray:
    return np.asarray(jax.jit(model.apply)(PARAMS, tokens, **inputs))


def test_the_past_of_ones_own_segment_is_all_that_is_seen():
    segments = np.array([1, 1, 1, 2, 2, 0, 0])
    for given in (None, segments):
        plain = logits(tokens=TOKENS[:1], segments=None if given is None else jnp.asarray(given)[None])
        for s in range(7):
            other = TOKENS[:1].at[0, s].add(1)
            after = logits(tokens=other, segments=None if given is None else jnp.asarray(given)[None])
            seen = np.tril(np.ones((7, 7), bool)) if given is None else np.tril(given[:, None] == given[None, :])
            np.testing.assert_array_equal(np.any(plain != after, axis=-1)[0], seen[:, s])


def test_packed_rows_equal_separate_rows():
    positions = jnp.asarray([[0, 1, 2, 0, 1, 2, 3]])
    segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 2]])
    packed = logits(tokens=TOKENS[:1], segments=segments, positions=positions)
    for part in (slice(0, 3), slice(3, 7)):
        np.testing.assert_allclose(packed[:, part], logits(tokens=TOKENS[:1, part]), rtol=1e-5, atol=1e-5)


def test_positions_are_learned_and_start_at_zero():
    np.testing.assert_array_equal(logits(positions=jnp.broadcast_to(jnp.arange(7), (2, 7))), logits())
    assert np.abs(logits(positions=jnp.broadcast_to(jnp.arange(1, 8), (2, 7))) - logits()).max() > 0.01


def test_the_head_is_the_embedding():
    table = PARAMS["embed"]["embedding"]
    scaled = tree.unflatten(tree.flatten(PARAMS) | {"embed/embedding": table.at[23].multiply(2.0)})
    tokens = jnp.where(TOKENS == 23, 0, TOKENS)
    got, plain = (np.asarray(jax.jit(MODEL.apply)(p, tokens)) for p in (scaled, PARAMS))
    np.testing.assert_allclose(got[..., 23], 2 * plain[..., 23], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(got[..., :23], plain[..., :23])


def test_it_has_the_slots_of_every_stack():
    assert MODEL.slots()["layers/attention/prefix"].shape == (2, 4, 4)
    assert sorted(MODEL.slots()) == [
        "layers/attention/prefix",
        "layers/attention_adapter",
        "layers/feed_forward_adapter",
        "prompt",
    ]


@pytest.mark.parametrize("make", [prefix, prompt, bottleneck])
def test_what_is_bound_at_a_slot_is_heard(make: Any):
    adaptation = make(3, slots=MODEL.slots())
    delta = scattered(adaptation.init(jax.random.key(1), PARAMS), 1)
    bound = adaptation.bind(PARAMS, delta)
    assert np.abs(np.asarray(jax.jit(MODEL.apply)(bound, TOKENS)) - logits()).max() > 0.01


def test_a_prompt_is_the_beginning_of_the_text():
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(3, 16)), jnp.float32)
    adaptation = prompt(3, init="random", slots=MODEL.slots())
    delta = jax.tree.map(lambda x: rows, adaptation.init(jax.random.key(0), PARAMS))
    got = jax.jit(MODEL.apply)(adaptation.bind(PARAMS, delta), TOKENS)
    table = jnp.concatenate([PARAMS["embed"]["embedding"], rows])
    whole = tree.unflatten(tree.flatten(PARAMS) | {"embed/embedding": table})
    longer = jnp.concatenate([jnp.broadcast_to(jnp.arange(24, 27, dtype=jnp.int32), (2, 3)), TOKENS], axis=1)
    wanted = jax.jit(MODEL.apply)(whole, longer)[:, 3:, :24]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_rows_longer_than_the_learned_positions_are_an_error():
    with pytest.raises(ValueError, match=r"13 tokens.*12 positions"):
        MODEL.apply(PARAMS, jnp.zeros((1, 13), jnp.int32))


def test_axes_name_every_axis_of_every_parameter():
    axes = tree.flatten(MODEL.axes(), is_leaf=lambda x: isinstance(x, tuple))
    assert {p: len(names) for p, names in axes.items()} == {p: x.ndim for p, x in tree.flatten(PARAMS).items()}
    assert axes["position_embed/embedding"] == (None, "embed")
