from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf
from adaptlab.adapt import full, lora, materialize, stack_adapters, tenants
from adaptlab.flops import count_flops
from adaptlab.models import LlamaShape, llama, mlp
from tests.laws.table import scattered

KEY = jax.random.key(0)
MODEL = llama(LlamaShape(32, 16, 2, 4, 2, 6, 20, tied=True))
BASE = scattered(jax.jit(MODEL.init)(KEY), 0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(1, 32, (5, 7)), jnp.int32)
ADAPTERS = [
    lora(2, alpha=3.0),
    lora(3, alpha=1.0, select=["layers/attention/.*", "embed/embedding"]),
    lora(2, alpha=5.0, effective_rank=1.0, select="layers/feed_forward/.*"),
]


def bound(base: Any = BASE) -> list[Any]:
    return [one.bind(base, scattered(one.init(KEY, base), i)) for i, one in enumerate(ADAPTERS)]


@pytest.fixture(scope="module")
def factors() -> Any:
    return stack_adapters(BASE, [*bound(), BASE])


def test_every_row_is_computed_as_by_its_own_adapter_alone(factors: Any):
    ids = jnp.array([2, 0, 1, 3, 0], jnp.int32)
    together = jax.jit(lambda f, i: MODEL.apply(tenants(BASE, f, i), TOKENS))(factors, ids)
    alone = [MODEL.apply(params, TOKENS) for params in [*bound(), BASE]]
    wanted = np.stack([alone[n][row] for row, n in enumerate(ids)])
    np.testing.assert_allclose(together, wanted, rtol=1e-4, atol=1e-5)
    assert np.abs(alone[0] - alone[1]).max() > 0.01


def test_other_ids_and_other_adapters_are_the_same_program(factors: Any):
    apply: Any = jax.jit(lambda f, i: MODEL.apply(tenants(BASE, f, i), TOKENS))
    first = apply(factors, jnp.zeros(5, jnp.int32))
    second = apply(jax.tree.map(lambda x: 2 * x, factors), jnp.ones(5, jnp.int32))
    assert apply._cache_size() == 1
    assert np.abs(first - second).max() > 0.01


def test_more_adapters_cost_a_row_nothing(factors: Any):
    few = stack_adapters(BASE, bound()[:2])
    ids = jnp.zeros(5, jnp.int32)
    costs = [count_flops(lambda f, i: MODEL.apply(tenants(BASE, f, i), TOKENS), f, ids) for f in (few, factors)]
    assert costs[0] == costs[1]


def test_rows_without_a_time_axis_have_adapters_too():
    model = mlp([6, 10, 4])
    base = scattered(model.init(KEY), 0)
    x = jax.random.normal(KEY, (4, 6))
    many = [
        lora(2, select=".*/kernel").bind(base, scattered(lora(2, select=".*/kernel").init(KEY, base), i))
        for i in (1, 2)
    ]
    got = model.apply(tenants(base, stack_adapters(base, many), jnp.array([1, 0, 0, 1], jnp.int32)), x)
    wanted = [model.apply(many[n], x)[row] for row, n in enumerate([1, 0, 0, 1])]
    np.testing.assert_allclose(got, np.stack(wanted), rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_adapters_that_were_chosen_and_no_others(factors: Any):
    def total(f: Any) -> jax.Array:
        return jnp.sum(MODEL.apply(tenants(BASE, f, jnp.array([0, 1, 1, 0, 0], jnp.int32)), TOKENS) ** 2)

    gradient = jax.grad(total)(factors)["layers"]["attention"]["query"]["kernel"]["a"]
    reached = [bool(np.any(gradient[:, n] != 0)) for n in range(4)]
    assert reached == [True, True, False, False]


def test_what_is_no_choice_of_low_rank_updates_is_an_error(factors: Any):
    with pytest.raises(ValueError, match="is not a low-rank update"):
        stack_adapters(BASE, [full().bind(BASE, full().init(KEY, BASE))])
    with pytest.raises(ValueError, match="none of 1 models has a low-rank update"):
        stack_adapters(BASE, [BASE])
    chosen = tenants(BASE, factors, jnp.zeros(5, jnp.int32))
    with pytest.raises(ValueError, match="among 4 adapters stands for no one matrix"):
        materialize(chosen)
    with pytest.raises(ValueError, match="A batch of 2 rows and the adapters of 5"):
        MODEL.apply(chosen, TOKENS[:2])
    assert leaf.is_node(chosen["embed"]["embedding"])
