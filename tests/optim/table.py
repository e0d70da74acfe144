"""Every optimiser with its numbers, and what the tests do with them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaptlab import optim, tree

# A tree as deltas are: a stack of matrices, a low-rank factor, a matrix for Adam, and stacked vectors.
TREE = {
    "layers": {
        "out": {"kernel": jax.random.normal(jax.random.key(1), (2, 4, 3))},
        "up": {"kernel": {"a": jax.random.normal(jax.random.key(2), (2, 4, 2))}},
        "norm": {"scale": jax.random.normal(jax.random.key(3), (2, 4))},
    },
    "embed": {"embedding": jax.random.normal(jax.random.key(4), (5, 4))},
}

# Optimiser -> its traced numbers, and its other arguments.
TABLE: dict[str, tuple[Any, dict[str, float], dict[str, Any]]] = {
    "sgd": (optim.sgd, {"momentum": 0.9}, {}),
    "nesterov": (optim.sgd, {"momentum": 0.9}, {"nesterov": True}),
    "adamw": (optim.adamw, {"b1": 0.8, "b2": 0.95, "eps": 1e-3}, {}),
    "lion": (optim.lion, {"b1": 0.8, "b2": 0.9}, {}),
    "adafactor": (
        optim.adafactor,
        {"decay_rate": 0.7, "threshold": 0.8, "momentum": 0.5, "eps": 1e-6, "min_scale": 1e-2},
        {"min_size_to_factor": 3},
    ),
    "muon": (optim.muon, {"momentum": 0.9, "rms": 0.3, "adam_lr": 0.5, "b1": 0.8, "b2": 0.95, "eps": 1e-3}, {}),
    "schedule_free_adamw": (optim.schedule_free_adamw, {"b1": 0.8, "b2": 0.95, "eps": 1e-3, "power": 1.5}, {}),
    "schedule_free_sgd": (optim.schedule_free_sgd, {"b1": 0.8, "power": 1.5}, {}),
}
COMMON = {"lr": 0.1, "weight_decay": 0.2, "clip": 3.0}
SCHEDULED = ["sgd", "nesterov", "adamw", "lion", "muon"]


def gradient_at(step: int, params: Any = TREE) -> Any:
    """Another gradient at each step and path, the same for everybody."""

    def draw(path: str, x: jax.Array) -> jax.Array:
        return jnp.asarray(np.random.default_rng([step, *path.encode()]).normal(size=x.shape), jnp.float32)

    return tree.map_with_path(draw, params)


def trained(optimizer: optax.GradientTransformation, params: Any = TREE, steps: Any = range(3)) -> tuple[Any, Any]:
    """The parameters and the state after the updates of some steps."""

    @jax.jit
    def update(gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):  # for Optax alone
            change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state

    state = optimizer.init(params)
    for step in steps:
        params, state = update(gradient_at(step, params), state, params)
    return params, state


def assert_trees_close(got: Any, wanted: Any, rtol: float = 1e-6, atol: float = 1e-6) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), got, wanted)
