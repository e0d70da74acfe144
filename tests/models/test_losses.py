import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab.data import Batch
from adaptlab.models import Model, cross_entropy, language_modelling


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
