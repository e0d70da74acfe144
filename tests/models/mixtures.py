"""Small mixtures of experts that several files of tests read: with room for all, for enough, and for too few."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab.models import MixtralShape, Model, mixtral
from tests.laws.table import VOCABULARY, scattered

SHAPE = MixtralShape(VOCABULARY, width=16, depth=2, heads=4, kv_heads=2, head_width=6, ffn_width=20, experts=4)
T, E, K = 12, SHAPE.experts, SHAPE.active
MODELS = {factor: mixtral(SHAPE, capacity_factor=factor) for factor in (None, 2.0, 1.0)}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (2, T), np.int32))
KINDS = ("hidden", "router", "chosen", "dropped")


@functools.cache
def base() -> Any:
    """Weights of all of `MODELS`."""
    shapes = jax.eval_shape(MODELS[None].init, jax.random.key(0))
    return scattered(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes), 0)


@functools.partial(jax.jit, static_argnums=0)
def looked(model: Model, params: Any, tokens: Any = TOKENS) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The logits, and what the model records."""
    assert model.intermediates is not None
    return model.apply(params, tokens), model.intermediates(params, tokens, kinds=KINDS)
