from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab.adapt import Adaptation, full, lora
from adaptlab.flops import count_flops
from adaptlab.models import LlamaShape, Model, language_modelling, llama
from adaptlab.train import make_objective
from tests.laws.table import LENGTH, ROWS, VOCABULARY, text_batch

# Wide and deep enough that the matrices of the layers are what costs.
SHAPE = LlamaShape(VOCABULARY, width=128, depth=8, heads=4, kv_heads=4, head_width=32, ffn_width=512)
TOKENS = ROWS * LENGTH
MATRICES = SHAPE.depth * (4 * SHAPE.width**2 + 3 * SHAPE.width * SHAPE.ffn_width)
HEAD = SHAPE.vocab_size * SHAPE.width
ATTENTION = SHAPE.depth * 2 * 2 * LENGTH * SHAPE.width  # q kᵀ and p v, per token: 2 FLOPs each a multiply-add


def gradient(model: Model, adaptation: Adaptation) -> Any:
    objective = make_objective(language_modelling(model), adaptation)
    return jax.grad(lambda delta, base, batch: objective(delta, base, batch, jax.random.key(0)).sum)


def flops_per_token(adaptation: Adaptation, **options: Any) -> float:
    model = llama(SHAPE, **options)
    base = jax.eval_shape(model.init, jax.random.key(0))
    delta = jax.eval_shape(adaptation.init, jax.random.key(0), base)
    return count_flops(gradient(model, adaptation), delta, base, text_batch(0)) / TOKENS


def test_full_fine_tuning_is_six_flops_a_parameter_and_token():
    got = flops_per_token(full())
    assert got == 6 * (MATRICES + HEAD) + 3 * ATTENTION
    assert 6.0 <= got / MATRICES < 6.2


def test_lora_is_four_because_frozen_weights_get_no_gradient():
    rank, (D, F) = 4, (SHAPE.width, SHAPE.ffn_width)
    adapters = SHAPE.depth * rank * (4 * 2 * D + 3 * (D + F))
    got = flops_per_token(lora(rank), unroll=1)
    assert got == 4 * (MATRICES + HEAD) + 6 * adapters + 3 * ATTENTION
    assert 4.0 <= got / MATRICES < 4.4


def test_layers_that_are_written_out_give_no_gradient_to_what_does_not_train_below_them():
    rank, D = 4, SHAPE.width
    query_key_value = 3 * (D * D + D * rank)  # of the first layer, by which nothing but the embeddings would be reached
    saved = flops_per_token(lora(rank), unroll=1) - flops_per_token(lora(rank), unroll=SHAPE.depth)
    assert saved == 2 * query_key_value


def test_full_rematerialisation_costs_one_more_forward_pass_of_the_layers():
    down = SHAPE.depth * SHAPE.width * SHAPE.ffn_width  # the layer's last product, which nothing reads again
    again = flops_per_token(full(), remat="full") - flops_per_token(full())
    assert again == 2 * (MATRICES - down) + ATTENTION


def test_a_scan_counts_as_often_as_it_runs():
    def f(x: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, _: (jnp.tanh(c @ c), None), x, None, length=7)[0]

    assert count_flops(f, jnp.ones((5, 5))) == 7 * 2 * 5**3


def test_inner_functions_and_branches_count():
    @jax.jit
    def twice(x: jax.Array) -> jax.Array:
        return x @ x @ x

    def branch(x: jax.Array) -> jax.Array:
        return jax.lax.cond(jnp.sum(x) > 0, twice, lambda y: y, x)

    one = 2 * 4**3
    assert count_flops(lambda x: jax.checkpoint(twice)(x) + branch(x), jnp.ones((4, 4))) == 4 * one
    assert count_flops(jax.vmap(twice), jnp.ones((3, 4, 4))) == 3 * 2 * one


def test_a_loop_of_unknown_length_is_an_error():
    with pytest.raises(ValueError, match="while loop has no known length"):
        count_flops(lambda x: jax.lax.while_loop(lambda y: jnp.sum(y) < 9, lambda y: y @ y, x), jnp.ones((2, 2)))


@pytest.mark.parametrize("adaptation", [full(), lora(4)], ids=["full", "lora"])
def test_the_count_is_that_of_the_compiler_where_it_sees_all_layers(adaptation: Adaptation):
    shape = LlamaShape(VOCABULARY, width=64, depth=2, heads=4, kv_heads=4, head_width=16, ffn_width=256)
    model = llama(shape, unroll=2)
    base = jax.eval_shape(model.init, jax.random.key(0))
    delta = jax.eval_shape(adaptation.init, jax.random.key(0), base)
    arguments = (delta, base, text_batch(0))
    compiled = jax.jit(gradient(model, adaptation)).lower(*arguments).compile()
    counted = count_flops(gradient(model, adaptation), *arguments)
    np.testing.assert_allclose(compiled.cost_analysis()["flops"], counted, rtol=0.08)
