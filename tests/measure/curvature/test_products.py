"""Products against matrices that are written out, on a network small enough to write them."""

from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab.measure import fisher_diagonal
from adaptlab.measure.curvature import (
    apply,
    block,
    damped,
    dense,
    empirical_fisher,
    fisher,
    gauss_newton,
    hessian,
    ignoring_base,
    preconditioned,
    stack_batches,
    top_eigenpairs,
)
from adaptlab.measure.curvature.lanczos import _eigenpairs
from adaptlab.models import LlamaShape, cross_entropy, language_modelling, llama, mlp
from adaptlab.optim import adamw
from adaptlab.stats import Mean
from adaptlab.train import init_state, make_step
from adaptlab.train.program import peak_bytes
from tests.laws.table import scattered, text_batch
from tests.measure.curvature.toy import LOSSES, OBJECTIVES, Rows, logits

D, H, C, B = 5, 4, 3, 6
CLOSE = {"rtol": 0, "atol": 1e-5}


def random_theta(seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    one = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {"first": {"kernel": one(D, H), "bias": one(H)}, "last": {"kernel": one(H, C), "bias": one(C)}}


def rows(seed: int, size: int = B) -> Rows:
    rng = np.random.default_rng(seed)
    weights = np.ones(size, np.float32)
    weights[0] = 0  # padding
    x = rng.normal(size=(size, D)).astype(np.float32)
    return Rows(jnp.asarray(x), jnp.asarray(rng.integers(0, C, size, np.int32)), jnp.asarray(weights))


def joined(*batches: Rows) -> Rows:
    return jax.tree.map(lambda *x: jnp.concatenate(x), *batches)


THETA, BATCHES = random_theta(), [rows(1), rows(2), rows(3)]
WHOLE = joined(*BATCHES)
FLAT, BACK = jax.flatten_util.ravel_pytree(THETA)


@pytest.fixture(scope="module", params=["ce", pytest.param("mse", marks=pytest.mark.slow)])
def loss(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def parts(loss: str) -> Any:
    """The Hessian, J `[B, C, P]`, the loss's Hessian at the logits, and the gradient of each row, written out."""

    @jax.jit
    def one(v: jax.Array) -> Any:
        def value(v: jax.Array) -> jax.Array:
            return OBJECTIVES[loss](BACK(v), None, WHOLE, None).value

        def z(v: jax.Array) -> jax.Array:
            return logits(BACK(v), None, WHOLE, None)

        def each(v: jax.Array) -> jax.Array:
            alone = lambda row: OBJECTIVES[loss](BACK(v), None, jax.tree.map(lambda x: x[None], row), None).sum  # noqa: E731
            return jax.vmap(alone)(WHOLE)

        outer = jax.hessian(lambda z: LOSSES[loss](z, WHOLE, None).sum)(z(v))
        return jax.hessian(value)(v), jax.jacobian(z)(v), outer, jax.jacobian(each)(v)

    return [np.asarray(x, np.float64) for x in one(FLAT)]


@pytest.mark.parametrize("reuse", [True, False])
def test_a_hessian_over_batches_is_the_hessian_of_all_rows(loss: str, parts: Any, reuse: bool):
    h = np.asarray(dense(hessian(OBJECTIVES[loss], THETA, None, BATCHES, reuse=reuse)))
    np.testing.assert_allclose(h, parts[0], **CLOSE)
    np.testing.assert_allclose(h, h.T, rtol=0, atol=1e-6)


@pytest.mark.parametrize("reuse", [True, False])
def test_gauss_newton_is_the_loss_hessian_seen_through_the_jacobian(loss: str, parts: Any, reuse: bool):
    g = dense(gauss_newton(logits, LOSSES[loss], THETA, None, BATCHES, reuse=reuse))
    wanted = np.einsum("bip,bicj,cjq->pq", parts[1], parts[2], parts[1]) / float(WHOLE.weights.sum())
    np.testing.assert_allclose(g, wanted, **CLOSE)


def test_the_fisher_information_is_the_mean_over_the_models_own_labels(parts: Any):
    p = np.asarray(jax.nn.softmax(logits(THETA, None, WHOLE, None)), np.float64)
    wanted, weights = 0.0, np.asarray(WHOLE.weights)
    for label in range(C):
        error = p - np.eye(C)[label]
        g = np.einsum("bi,bip->bp", error, parts[1])
        wanted = wanted + np.einsum("b,bp,bq->pq", weights * p[:, label], g, g) / weights.sum()
    np.testing.assert_allclose(dense(fisher(logits, THETA, None, BATCHES)), wanted, **CLOSE)


def test_the_empirical_fisher_is_the_mean_of_squared_row_gradients(loss: str, parts: Any):
    wanted = parts[3].T @ parts[3] / float(WHOLE.weights.sum())
    for reuse in (True, False):
        f = dense(empirical_fisher(OBJECTIVES[loss], THETA, None, BATCHES, reuse=reuse))
        np.testing.assert_allclose(f, wanted, **CLOSE)


def test_the_empirical_fishers_diagonal_is_the_streamed_one():
    objective = OBJECTIVES["ce"]
    f = np.diag(dense(empirical_fisher(objective, THETA, None, BATCHES)))
    streamed = fisher_diagonal(
        lambda p, batch, key: objective(p, None, batch, key), THETA, BATCHES, jax.random.key(0), chunk=2
    )
    np.testing.assert_allclose(f, jax.flatten_util.ravel_pytree(streamed)[0], rtol=1e-4, atol=1e-7)


def test_maps_made_of_an_operator_are_what_their_formulas_say(parts: Any, loss: str):
    h = hessian(OBJECTIVES[loss], THETA, None, BATCHES, reuse=True)
    np.testing.assert_allclose(dense(damped(h, 0.5)), parts[0] + 0.5 * np.eye(FLAT.size), **CLOSE)
    p = jax.tree.map(lambda x: 0.5 + jnp.abs(x), THETA)
    root = np.asarray(jax.flatten_util.ravel_pytree(p)[0]) ** -0.5
    np.testing.assert_allclose(dense(preconditioned(h, p)), root[:, None] * parts[0] * root[None], rtol=0, atol=2e-5)


def test_a_block_is_the_part_of_the_matrix_that_belongs_to_a_layer(parts: Any, loss: str):
    h = hessian(OBJECTIVES[loss], THETA, None, BATCHES, reuse=True)
    index = jax.flatten_util.ravel_pytree(jax.tree.map(jnp.zeros_like, THETA) | {"last": BACK(FLAT * 0 + 1)["last"]})[0]
    inside = np.flatnonzero(index)
    np.testing.assert_allclose(dense(block(h, "last/.*")), parts[0][np.ix_(inside, inside)], **CLOSE)


def test_blocks_of_stacked_layers_are_those_of_the_layers():
    stack = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), jnp.float32)}
    h = hessian(coupled, stack, None, [jnp.ones(())])
    whole = np.asarray(dense(h)).reshape(3, 4, 3, 4)
    together = jax.vmap(lambda layer: dense(block(h, "w", layer=layer)))(jnp.arange(3))
    for layer in range(3):
        np.testing.assert_allclose(dense(block(h, "w", layer=layer)), whole[layer, :, layer], atol=1e-6)
        np.testing.assert_allclose(together[layer], whole[layer, :, layer], atol=1e-6)


def coupled(theta: Any, base: Any, batch: Any, key: Any) -> Mean:
    return Mean(jnp.sum(jnp.tanh(jnp.cumsum(theta["w"], axis=0)) ** 2) * batch, jnp.ones(()))


def test_other_parameters_and_batches_do_not_recompile():
    objective, key = OBJECTIVES["ce"], jax.random.key(0)
    before = _eigenpairs._cache_size()
    for seed in range(3):
        top_eigenpairs(hessian(objective, random_theta(seed), None, [rows(seed)]), 1, key=key)
    assert _eigenpairs._cache_size() == before + 1


def test_the_frozen_base_is_an_argument_of_the_program_and_not_in_it():
    base = {"w": jnp.ones((1000,))}

    def objective(theta: Any, base: Any, batch: Any, key: Any) -> Mean:
        return Mean(jnp.sum(jnp.square(theta["a"]) * base["w"]) * batch, jnp.ones(()))

    h = hessian(objective, {"a": jnp.ones(1000)}, base, [jnp.ones(())])
    program = _eigenpairs.trace(h, jax.random.key(0), None, 1e-3, 10, 1, 4, True).jaxpr
    assert all(np.size(c) < 100 for c in program.consts)
    assert any(x.aval.shape == (1000,) for x in program.jaxpr.invars)


@pytest.mark.slow
def test_an_eigenpair_takes_at_most_four_times_the_memory_of_a_training_step():
    """By the compiler's account, at a size where a basis is a matter of memory: 2.4 million parameters."""
    model = mlp((256, 1024, 1024, 1024, 16))
    params = jax.eval_shape(model.init, jax.random.key(0))
    batch = (jax.ShapeDtypeStruct((64, 256), jnp.float32), jax.ShapeDtypeStruct((64,), jnp.int32))

    def objective(theta: Any, base: Any, batch: Any, key: Any) -> Mean:
        nats = cross_entropy(model.apply(theta, batch[0]), batch[1])
        return Mean(jnp.sum(nats), jnp.full((), nats.size, jnp.float32))

    optimizer = adamw(1e-3, total_steps=10)
    state = jax.eval_shape(lambda p: init_state(p, optimizer), params)
    key = jax.eval_shape(jax.random.key, 0)
    step = jax.jit(make_step(objective, optimizer), donate_argnums=0).lower(state, None, batch, key).compile()

    def pairs(theta: Any, batch: Any, key: jax.Array) -> Any:
        return top_eigenpairs(hessian(objective, theta, None, [batch]), 1, key=key)

    most = 4 * peak_bytes(step)
    assert peak_bytes(jax.jit(pairs).lower(params, batch, key).compile()) <= most
    h = jax.eval_shape(lambda theta, batch: hessian(objective, theta, None, [batch]), params, batch)
    assert peak_bytes(_eigenpairs.lower(h, key, None, 1e-3, 100, 1, 9, True).compile()) <= most


def test_a_loss_of_parameters_and_batch_is_an_objective():
    objective = ignoring_base(lambda theta, batch: OBJECTIVES["ce"](theta, None, batch, None))
    got = apply(hessian(objective, THETA, None, [WHOLE]), THETA)
    wanted = apply(hessian(OBJECTIVES["ce"], THETA, None, [WHOLE]), THETA)
    np.testing.assert_array_equal(got["last"]["bias"], wanted["last"]["bias"])


def test_bfloat16_parameters_have_float32_products():
    theta = jax.tree.map(lambda x: x.astype(jnp.bfloat16), THETA)
    batch = BATCHES[0]._replace(
        inputs=BATCHES[0].inputs.astype(jnp.bfloat16), weights=BATCHES[0].weights.astype(jnp.bfloat16)
    )
    got = apply(hessian(OBJECTIVES["ce"], theta, None, [batch]), THETA)
    wanted = apply(hessian(OBJECTIVES["ce"], THETA, None, [BATCHES[0]]), THETA)
    got, wanted = (jax.flatten_util.ravel_pytree(x)[0] for x in (got, wanted))
    assert got.dtype == jnp.float32
    assert float(jnp.linalg.norm(got - wanted)) < 0.1 * float(jnp.linalg.norm(wanted))


@pytest.mark.slow
def test_scanned_and_unrolled_layers_have_one_hessian():
    shape = LlamaShape(32, width=16, depth=2, heads=4, head_width=6, ffn_width=20, kv_heads=2, tied=False)
    products = []
    for unroll in (1, 2):
        model = llama(shape, unroll=unroll)
        params = scattered(jax.jit(model.init)(jax.random.key(0)), 0)
        loss = language_modelling(model)
        h = hessian(lambda theta, base, batch, key, loss=loss: loss(theta, batch, key), params, None, [text_batch(0)])
        products.append(apply(h, scattered(jax.tree.map(jnp.zeros_like, params), 1)))
    flat = [jax.flatten_util.ravel_pytree(x)[0] for x in products]
    np.testing.assert_allclose(flat[0], flat[1], rtol=0, atol=2e-5 * float(jnp.max(jnp.abs(flat[0]))))


def test_batches_that_cannot_be_streamed_are_refused():
    with pytest.raises(ValueError, match="rows of weight 0"):
        stack_batches([rows(0), rows(0, size=4)])
    with pytest.raises(ValueError, match="at least one"):
        stack_batches([])
    with pytest.raises(ValueError, match=r"\[batch\]"):
        stack_batches(rows(0))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="nothing to train"):
        hessian(OBJECTIVES["ce"], {}, None, BATCHES)
