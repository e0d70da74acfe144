from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from adaptlab.data import Batch
from adaptlab.models import LlamaShape, Model, cross_entropy, language_modelling, llama
from adaptlab.models.layers import dropped
from tests.laws.table import text_batch


def test_cross_entropy_is_the_log_of_the_softmax():
    logits = np.random.default_rng(0).normal(size=(3, 4, 7)) * 5
    targets = np.random.default_rng(1).integers(0, 7, (3, 4), np.int32)
    log_softmax = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    wanted = -np.take_along_axis(log_softmax, targets[..., None], -1)[..., 0]
    got = cross_entropy(jnp.asarray(logits, jnp.float32), jnp.asarray(targets))
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


def test_the_gradient_of_cross_entropy_is_softmax_minus_target():
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5)), jnp.float32)
    targets = jnp.asarray([4, 0])
    got = jax.grad(lambda x: jnp.sum(cross_entropy(x, targets)))(logits)
    np.testing.assert_allclose(got, jax.nn.softmax(logits) - jax.nn.one_hot(targets, 5), rtol=1e-5, atol=1e-6)


def test_the_second_derivative_of_cross_entropy_is_the_covariance_of_the_softmax():
    logits, targets = jnp.asarray(np.random.default_rng(0).normal(size=(3, 5)), jnp.float32), jnp.asarray([4, 0, 2])
    got = jax.vmap(jax.hessian(cross_entropy))(logits, targets)
    p = jax.nn.softmax(logits)
    wanted = jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None, :]
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_large_logits_do_not_overflow(shift: float):
    logits = jnp.asarray([[0.0, 1.0, 2.0]]) + shift
    wanted = np.log(np.exp([0.0, 1.0, 2.0]).sum()) - 1.0
    np.testing.assert_allclose(cross_entropy(logits, jnp.asarray([1])), [wanted], rtol=1e-6)


def test_the_loss_is_a_sum_over_the_targets_that_count():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)), jnp.float32)
    model = Model(init=lambda key: table, apply=lambda params, tokens, **_: params[tokens], axes=lambda: ())
    tokens, targets = jnp.asarray([[0, 1, 2], [3, 4, 5]]), jnp.asarray([[1, 2, 3], [4, 5, 0]])
    weights = jnp.asarray([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    batch = Batch(tokens, targets, jnp.ones_like(tokens), jnp.zeros_like(tokens), weights)
    mean = language_modelling(model)(table, batch, jax.random.key(0))
    log_p = jax.nn.log_softmax(table)
    np.testing.assert_allclose(mean.sum, -(log_p[0, 1] + log_p[1, 2] + log_p[3, 4]), rtol=1e-5)
    assert mean.weight == 3


LLAMA = llama(LlamaShape(vocab_size=32, width=16, depth=2, heads=4, kv_heads=2, head_width=6, ffn_width=20))


def mean_loss(seed: int = 0, **options: Any) -> float:
    params = LLAMA.init(jax.random.key(1))
    loss = jax.jit(lambda options, key: language_modelling(LLAMA, **options)(params, text_batch(0), key).value)
    return float(loss(options, jax.random.key(seed)))


def test_options_that_are_none_ask_for_no_randomness():
    assert mean_loss(0) == mean_loss(1)


@pytest.mark.parametrize("option", ["dropout", "label_noise"])
def test_a_rate_of_zero_is_the_plain_loss_and_a_higher_one_depends_on_the_key(option: str):
    assert mean_loss(**{option: 0.0}) == pytest.approx(mean_loss(), rel=1e-6)
    assert mean_loss(0, **{option: 0.5}) != mean_loss(1, **{option: 0.5})


def test_label_noise_replaces_targets_at_its_rate():
    table = 8.0 * jnp.eye(32)

    def confident(params: Any, tokens: Any, **_: Any) -> jax.Array:
        return table[batch.targets]

    batch = text_batch(0)._replace(weights=jnp.ones((8, 6)))
    loss = language_modelling(LLAMA._replace(apply=confident), label_noise=0.25)
    losses = [float(loss(None, batch, jax.random.key(k)).value) for k in range(200)]
    right, wrong = float(cross_entropy(8.0 * jnp.eye(32)[:1], jnp.zeros(1, jnp.int32))[0]), 8.0
    expected = right + 0.25 * 31 / 32 * wrong  # a uniform draw is the target itself once in 32
    assert np.mean(losses) == pytest.approx(expected, rel=0.05)


def test_label_smoothing_is_the_mixture_with_the_uniform_distribution():
    logits = jax.random.normal(jax.random.key(3), (8, 6, 32))
    batch = text_batch(0)
    loss = language_modelling(LLAMA._replace(apply=lambda *_, **__: logits), label_smoothing=0.1)
    log_p = np.asarray(jax.nn.log_softmax(logits))
    target = np.take_along_axis(log_p, np.asarray(batch.targets)[..., None], -1)[..., 0]
    weights = np.asarray(batch.weights)
    wanted = -((0.9 * target + 0.1 * log_p.mean(-1)) * weights).sum() / weights.sum()
    assert float(loss(None, batch, jax.random.key(0)).value) == pytest.approx(wanted, rel=1e-5)


def test_dropout_drops_its_share_and_keeps_the_expectation():
    class Dropping(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            return dropped(self, x, 0.3)

    x = jnp.ones((200, 500))
    y = np.asarray(Dropping().apply({}, x, rngs={"dropout": jax.random.key(0)}))
    assert set(np.unique(y)) == {0.0, np.float32(1 / 0.7)}
    assert y.mean() == pytest.approx(1.0, abs=0.01)
