import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab.models import mlp


def test_it_is_matrices_with_an_activation_between():
    model = mlp([3, 5, 2], activation="tanh")
    params = jax.tree.map(lambda x: x + 0.1, model.init(jax.random.key(0)))
    x = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    first, second = jax.device_get([params["dense_0"], params["dense_1"]])
    wanted = np.tanh(x @ first["kernel"] + first["bias"]) @ second["kernel"] + second["bias"]
    np.testing.assert_allclose(model.apply(params, jnp.asarray(x)), wanted, rtol=1e-5, atol=1e-6)


def test_without_hidden_layers_it_is_linear():
    model = mlp([3, 2], activation="relu")
    params = model.init(jax.random.key(0))
    x = jnp.asarray([[1.0, 2.0, 3.0]])
    np.testing.assert_allclose(model.apply(params, -x), -model.apply(params, x), rtol=1e-6)


def test_impossible_networks_are_errors():
    with pytest.raises(ValueError, match=r"widths=\[3\]"):
        mlp([3])
    with pytest.raises(ValueError, match=r"activation='swish'.*tanh"):
        mlp([3, 2], activation="swish")
