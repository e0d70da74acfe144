from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf, tree
from adaptlab.models import BertShape, LlamaShape, bert, llama
from adaptlab.models.blockwise import blockwise_attention
from adaptlab.models.dense import dense_attention
from adaptlab.models.mask import BLOCKWISE_FROM, Mask
from tests.laws.table import scattered

B, T, H, G, K = 2, 23, 4, 2, 6
SEGMENTS = jnp.asarray(np.sort(np.random.default_rng(1).integers(0, 4, (B, T), np.int32), axis=1))


def arrays(seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=(B, T, heads, K)).astype(np.float32)) for heads in (H, G, G))


def close(got: Any, wanted: Any) -> None:
    for path, x in tree.flatten(wanted).items():
        np.testing.assert_allclose(tree.flatten(got)[path], x, rtol=1e-5, atol=1e-5 * np.abs(x).max(), err_msg=path)


def named(values: Any) -> dict[str, Any]:
    return {str(i): x for i, x in enumerate(jax.tree.leaves(values))}


@pytest.mark.parametrize("causal", [True, False], ids=["causal", "whole"])
@pytest.mark.parametrize("segments", [pytest.param(None, marks=pytest.mark.slow), SEGMENTS], ids=["one", "packed"])
def test_attention_in_blocks_has_the_value_gradient_and_second_derivative_of_attention_at_once(causal, segments):
    mask, weight = Mask(segments, T, causal), arrays(3)[0]

    def all_of(attend: Any) -> Any:
        def total(q: Any, k: Any, v: Any) -> jax.Array:
            return jnp.sum(weight * attend(q, k, v))

        # Forward over reverse: the gradient, and the Hessian times a direction.
        return jax.jit(lambda x, dx: jax.jvp(jax.value_and_grad(total, (0, 1, 2)), x, dx))(arrays(0), arrays(2))

    got = all_of(lambda q, k, v: blockwise_attention(q, k, v, mask, block=8)[0])
    close(named(got), named(all_of(lambda q, k, v: dense_attention(q, k, v, mask.dense()))))


@pytest.mark.slow
def test_blocks_may_be_batched():
    q, k, v = (jnp.stack([x, 2 * x]) for x in arrays(0))
    mask = Mask(None, T, causal=True)

    def gradient(k: Any, q: Any, v: Any) -> Any:
        return jax.grad(lambda k: jnp.sum(jnp.square(blockwise_attention(q, k, v, mask, block=8)[0])))(k)

    batched = jax.jit(jax.vmap(gradient))(k, q, v)
    for i in range(2):
        close({"dk": batched[i]}, {"dk": jax.jit(gradient)(k[i], q[i], v[i])})


@pytest.mark.slow
def test_the_log_of_the_softmax_sum_has_its_derivative_too():
    q, k, v = arrays(0)
    mask = Mask(None, T, causal=False)
    got = jax.jit(jax.grad(lambda q: jnp.sum(blockwise_attention(q, k, v, mask, block=8)[1])))(q)

    def plain(q: Any) -> jax.Array:
        s = jnp.einsum("btgnk,bsgk->btgns", q.reshape(B, T, G, H // G, K), k) * K**-0.5
        return jnp.sum(jax.nn.logsumexp(s, axis=-1))

    close({"dq": got}, {"dq": jax.grad(plain)(q)})


def memory(length: int, attend: Any) -> int:
    like = [jax.ShapeDtypeStruct((1, length, heads, 8), jnp.float32) for heads in (2, 1, 1)]
    mask = Mask(None, length, causal=True)
    gradient = jax.jit(jax.grad(lambda q, k, v: jnp.sum(attend(q, k, v, mask) ** 2), (0, 1, 2)))
    return gradient.lower(*like).compile().memory_analysis().temp_size_in_bytes


def test_memory_grows_with_the_length_where_attention_at_once_grows_with_its_square():
    blocks = [memory(n, lambda q, k, v, mask: blockwise_attention(q, k, v, mask, block=64)[0]) for n in (512, 1024)]
    whole = [memory(n, lambda q, k, v, mask: dense_attention(q, k, v, mask.dense())) for n in (512, 1024)]
    assert blocks[1] < 2.1 * blocks[0]
    assert whole[1] > 3.5 * whole[0]
    assert blocks[1] < whole[1] / 10


SIZES = {"vocab_size": 24, "width": 16, "depth": 2, "heads": 4, "ffn_width": 20}
FAMILIES = {
    "llama": (llama, LlamaShape(**SIZES, kv_heads=2, head_width=6)),
    "bert": (bert, BertShape(**SIZES, context=16)),
}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 24, (2, 7), np.int32))
PACKED = jnp.asarray([[1, 1, 1, 2, 2, 0, 0], [1, 1, 2, 2, 2, 2, 2]])


def with_slots(params: Any, shape: Any) -> Any:
    """The weights with three keys and values in front of each layer's, and a prompt of two rows."""
    rng = np.random.default_rng(2)
    heads, width = getattr(shape, "kv_heads", shape.heads), getattr(shape, "head_width", shape.width // shape.heads)
    keys, values = (jnp.asarray(rng.normal(size=(2, 3, heads, width)).astype(np.float32)) for _ in range(2))
    rows = jnp.asarray(rng.normal(size=(2, shape.width)).astype(np.float32))
    found = params["layers"]["attention"] | {"prefix": leaf.Prefix(keys, values)}
    return params | {"layers": params["layers"] | {"attention": found}, "prompt": leaf.Prompt(rows)}


@pytest.mark.parametrize("family", ["llama", pytest.param("bert", marks=pytest.mark.slow)])
def test_a_model_attends_in_blocks_as_at_once_behind_prefix_and_prompt(family):
    make, shape = FAMILIES[family]
    params = scattered(jax.jit(make(shape).init)(jax.random.key(0)), 0)
    params = with_slots(params, shape)

    def gradient(how: str) -> Any:
        def total(params: Any) -> jax.Array:
            return jnp.mean(jnp.square(make(shape, attention=how).apply(params, TOKENS, segments=PACKED)))

        return jax.jit(jax.grad(total))(params)

    close(named(gradient("blockwise")), named(gradient("dense")))


def test_auto_is_blockwise_for_long_rows_only():
    shape = LlamaShape(**SIZES | {"depth": 1}, kv_heads=2, head_width=6)
    model = llama(shape)
    params = jax.eval_shape(model.init, jax.random.key(0))

    def scores(length: int) -> bool:
        tokens = jax.ShapeDtypeStruct((1, length), jnp.int32)
        return f"{length},{length}]" in str(jax.make_jaxpr(model.apply)(params, tokens))

    assert scores(BLOCKWISE_FROM - 2)
    assert not scores(BLOCKWISE_FROM)


def test_impossible_options_are_errors_when_they_are_given():
    with pytest.raises(ValueError, match=r"attention='flash' is not one of \['auto', 'dense', 'blockwise'"):
        llama(FAMILIES["llama"][1], attention="flash")
    with pytest.raises(ValueError, match="block=0 must be at least 1"):
        blockwise_attention(*arrays(0), Mask(None, T, causal=True), block=0)
