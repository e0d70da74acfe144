"""A mixture of experts: what it computes, what it drops, and what its losses are."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import tree
from adaptlab.models import LlamaShape, Model, language_modelling, llama, mixtral
from adaptlab.models.moe import capacity, load_balancing_loss, router_z_loss
from tests.laws.table import VOCABULARY, text_batch
from tests.models.mixtures import MODELS, SHAPE, TOKENS, E, K, T, base, looked


@pytest.fixture(scope="module")
def seen() -> dict[Any, Any]:
    """`{capacity factor: (logits, intermediates)}`."""
    return {factor: looked(model, base()) for factor, model in MODELS.items()}


# What experts compute ---------------------------------------------------------------------------------------------


def by_hand(params: Any, x_BTD: np.ndarray, slots: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The first layer's mixture in float64, token by token, and which share of its choices each token lost."""
    weights = {path: np.asarray(x[0], np.float64) for path, x in tree.flatten(params["layers"]["feed_forward"]).items()}
    y_BTD, dropped_BT = np.zeros_like(x_BTD), np.zeros(x_BTD.shape[:2])
    for b, x_TD in enumerate(x_BTD):
        taken = np.zeros(E, int)
        for t, x_D in enumerate(x_TD):
            logits_E = x_D @ weights["router"]
            chosen = np.argsort(-logits_E)[:K]
            gates = np.exp(logits_E[chosen]) / np.exp(logits_E[chosen]).sum()
            for e, gate in zip(chosen, gates, strict=True):
                taken[e] += 1
                if slots is not None and taken[e] > slots:
                    dropped_BT[b, t] += 1 / K
                    continue
                a_F = x_D @ weights["gate/kernel"][e]
                h_F = a_F / (1 + np.exp(-a_F)) * (x_D @ weights["up/kernel"][e])
                y_BTD[b, t] += gate * (h_F @ weights["down/kernel"][e])
    return y_BTD, dropped_BT


def first_layer_without_attention(params: Any, model: Model) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """What goes into the first mixture, what comes out, and what is recorded, for attention that adds nothing."""
    silent = tree.map_with_path(lambda p, x: jnp.zeros_like(x) if "attention/out" in p else x, params)
    _, found = looked(model, silent)
    before, after = np.asarray(found["hidden"][:2], np.float64)
    scale = np.asarray(params["layers"]["feed_forward_norm"]["scale"][0], np.float64)
    normal = before / np.sqrt(np.mean(before**2, -1, keepdims=True) + SHAPE.norm_eps) * scale
    return normal, after - before, found


@pytest.mark.parametrize("factor", [None, 1.0])
def test_a_mixture_is_the_gated_sum_of_the_chosen_experts_that_have_room(factor: float | None):
    inputs, outputs, found = first_layer_without_attention(base(), MODELS[factor])
    wanted, dropped = by_hand(base(), inputs, None if factor is None else capacity(T, E, K, factor))
    np.testing.assert_allclose(outputs, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(found["dropped"][0], dropped, atol=1e-6)
    assert (dropped.mean() > 0.05) == (factor is not None)


def test_with_room_for_all_nothing_is_dropped_and_both_ways_agree(seen: dict[Any, Any]):
    assert capacity(T, E, K, E / K) == T
    assert not np.any(seen[2.0][1]["dropped"])
    size = np.abs(seen[None][0]).max()
    np.testing.assert_allclose(seen[2.0][0], seen[None][0], rtol=0, atol=1e-5 * size)
    assert np.abs(seen[1.0][0] - seen[None][0]).max() > 0.01 * size


def test_a_row_is_the_same_in_any_batch_though_tokens_are_dropped(seen: dict[Any, Any]):
    alone = jax.jit(MODELS[1.0].apply)(base(), TOKENS[1:])
    np.testing.assert_allclose(alone[0], seen[1.0][0][1], rtol=1e-5, atol=1e-5)


def test_what_is_dropped_does_not_depend_on_the_future(seen: dict[Any, Any]):
    now = T - 2
    other = TOKENS.at[:, now:].set((TOKENS[:, now:] + 7) % VOCABULARY)
    logits, found = looked(MODELS[1.0], base(), other)
    wanted, plain = seen[1.0]
    np.testing.assert_array_equal(found["dropped"][:, :, :now], plain["dropped"][:, :, :now])
    assert np.any(plain["dropped"][:, :, :now])
    np.testing.assert_allclose(logits[:, :now], wanted[:, :now], rtol=1e-5, atol=1e-5)
    assert np.abs(logits[:, now:] - wanted[:, now:]).max() > 0.1


@pytest.mark.slow
def test_how_layers_are_run_changes_nothing(seen: dict[Any, Any]):
    model = mixtral(SHAPE, capacity_factor=1.0, remat="full", unroll=1)
    logits, found = looked(model, base())
    np.testing.assert_allclose(logits, seen[1.0][0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["chosen"], seen[1.0][1]["chosen"])


def test_the_router_is_float32_in_a_model_that_computes_in_bfloat16():
    model = mixtral(SHAPE, dtype="bfloat16")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    router = jax.eval_shape(lambda p: model.intermediates(p, TOKENS, kinds=("router", "hidden")), shapes)
    assert (router["router"].dtype, router["hidden"].dtype) == (jnp.float32, jnp.bfloat16)
    assert router["router"].shape == (SHAPE.depth, *TOKENS.shape, E)


# Losses -----------------------------------------------------------------------------------------------------------


def test_an_even_router_has_the_balance_of_its_choices_and_a_collapsed_one_that_of_all_experts():
    weights = jnp.ones((2, 8))
    chosen = jnp.stack([jnp.arange(16).reshape(1, 2, 8) % 4, (jnp.arange(16).reshape(1, 2, 8) + 1) % 4], -1)
    even = load_balancing_loss(jnp.zeros((1, 2, 8, 4)), chosen, weights)
    one = jnp.broadcast_to(50.0 * jnp.asarray([1.0, 0.9, 0, 0]), (1, 2, 8, 4))
    collapsed = load_balancing_loss(one, jnp.broadcast_to(jnp.arange(2), (1, 2, 8, 2)), weights)
    np.testing.assert_allclose([even, collapsed], [2.0, 4.0], rtol=1e-5)


def test_router_losses_are_means_over_the_tokens_that_count():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, 2, 5, 4)).astype(np.float32)
    chosen = np.argsort(-logits, axis=-1)[..., :2].astype(np.int32)
    weights = (rng.random((2, 5)) < 0.6).astype(np.float32)
    assert 0 < weights.sum() < 10
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    kept = np.broadcast_to(weights > 0, (3, 2, 5))
    share = np.array([np.mean(np.sum(chosen[kept] == e, axis=-1)) for e in range(4)])
    got = load_balancing_loss(jnp.asarray(logits), jnp.asarray(chosen), jnp.asarray(weights))
    np.testing.assert_allclose(got, 4 * np.sum(share * p[kept].mean(0)), rtol=1e-5)
    z = router_z_loss(jnp.asarray(logits), jnp.asarray(weights))
    np.testing.assert_allclose(z, np.mean(np.log(np.exp(logits).sum(-1))[kept] ** 2), rtol=1e-5)


def test_the_objective_adds_its_coefficients_times_the_routers_losses():
    model, batch = MODELS[None], text_batch(0)

    @jax.jit
    def three(params: Any, balance: Any, z: Any) -> Any:
        inputs = {"segments": batch.segments, "positions": batch.positions}
        found = model.intermediates(params, batch.tokens, **inputs, kinds=("router", "chosen"))
        plain = language_modelling(model)(params, batch, jax.random.key(0))
        whole = language_modelling(model, balance=balance, router_z=z)(params, batch, jax.random.key(0))
        terms = (
            load_balancing_loss(found["router"], found["chosen"], batch.weights),
            router_z_loss(found["router"], batch.weights),
        )
        return whole.value - plain.value, terms, whole.weight - plain.weight

    added, (balance, z), weight = three(base(), 0.7, 0.3)
    np.testing.assert_allclose(added, 0.7 * balance + 0.3 * z, rtol=1e-4)
    assert weight == 0


def test_only_routers_learn_from_the_routers_losses_of_one_layer():
    model, batch = mixtral(SHAPE), text_batch(0)

    def balance(params: Any) -> Any:
        with_it, without = (
            language_modelling(model, balance=coefficient)(params, batch, jax.random.key(0)).value
            for coefficient in (1.0, None)
        )
        return with_it - without

    gradient = tree.flatten(jax.jit(jax.grad(balance))(base()))
    size = {path: float(np.abs(g).max()) for path, g in gradient.items()}
    assert size["layers/feed_forward/router"] > 1e-3
    last = np.abs(gradient["layers/feed_forward/down/kernel"][-1]).max()  # nothing is routed behind the last layer
    assert last <= 1e-6 < 1e-4 < np.abs(gradient["layers/feed_forward/down/kernel"][0]).max()


def test_a_model_without_a_router_cannot_be_balanced():
    dense = llama(LlamaShape(VOCABULARY, 16, 1, 2, 2, 8, 20))
    with pytest.raises(ValueError, match="no router"):
        language_modelling(dense, balance=0.01)
