import re
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from adaptlab import leaf, tree
from adaptlab.models import BertShape, LlamaShape, bert, llama
from adaptlab.models.dense import dense_attention
from adaptlab.models.mask import Mask
from adaptlab.models.ring import ring_attention
from adaptlab.shard import Placement, computing, make_mesh, place
from tests.laws.table import scattered

B, T = 4, 32
SIZES = {"vocab_size": 24, "width": 16, "depth": 2, "heads": 4, "ffn_width": 20}
MODELS = {
    "llama": llama(LlamaShape(**SIZES, kv_heads=2, head_width=6), unroll=1),
    "bert": bert(BertShape(**SIZES, context=64), unroll=1),
}
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(0, 24, (B, T), np.int32))
SEGMENTS = jnp.asarray(np.sort(RNG.integers(0, 4, (B, T), np.int32), axis=1))  # they cross from device to device


def total(model: Any, weights: Any, tokens: Any, segments: Any) -> jax.Array:
    """A number that all weights move, those of a prefix in front of each layer's keys too."""
    params, prefix = weights
    found = params["layers"]["attention"] | {"prefix": leaf.Prefix(*prefix)}
    params = params | {"layers": params["layers"] | {"attention": found}}
    return jnp.mean(jnp.square(model.apply(params, tokens, segments=segments)))


@pytest.fixture(scope="module", params=["llama", pytest.param("bert", marks=pytest.mark.slow)])
def alone(request: Any) -> Any:
    """A model, its weights (with a prefix, which all devices hold), and what one device finds."""
    model = MODELS[request.param]
    params = scattered(jax.jit(model.init)(jax.random.key(0)), 0)
    heads, width = (2, 6) if request.param == "llama" else (4, 4)
    prefix = tuple(jnp.asarray(RNG.normal(size=(2, 3, heads, width)).astype(np.float32)) for _ in range(2))
    found = jax.jit(jax.value_and_grad(lambda weights: total(model, weights, TOKENS, SEGMENTS)))((params, prefix))
    return model, (params, prefix), found


def compiled(model: Any, weights: Any, mesh: Any) -> Any:
    placement = Placement(mesh, model.axes())
    batch = NamedSharding(mesh, PartitionSpec(placement.batch.spec[0] if placement.batch.spec else None))

    def on_mesh(weights: Any, tokens: Any, segments: Any) -> Any:
        with computing(placement):
            return jax.value_and_grad(lambda weights: total(model, weights, tokens, segments))(weights)

    where = placement.shardings(placement.axes, weights[0])
    placed = place(weights, (where, (placement.replicated, placement.replicated)))
    given = (placed, *place((TOKENS, SEGMENTS), (batch, batch)))
    return jax.jit(on_mesh).lower(*given).compile(), given


MESHES = [
    {"context": 2, "data": 2, "tensor": 2},
    *(
        pytest.param(sizes, marks=pytest.mark.slow)
        for sizes in ({"context": 8}, {"context": 4, "data": 2}, {"context": 4, "tensor": 2}, {"context": 2, "fsdp": 4})
    ),
]


@pytest.mark.parametrize("sizes", MESHES, ids=str)
def test_loss_and_gradient_of_rows_over_devices_are_those_of_one_device(alone: Any, sizes: dict[str, int]):
    model, weights, (loss, gradient) = alone
    program, given = compiled(model, weights, make_mesh(**sizes))
    got_loss, got = program(*given)
    np.testing.assert_allclose(got_loss, loss, rtol=1e-5)
    got = tree.flatten({"params": got[0], "prefix": got[1]})
    for path, wanted in tree.flatten({"params": gradient[0], "prefix": gradient[1]}).items():
        np.testing.assert_allclose(got[path], wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max(), err_msg=path)


def ring_gradient(causal: bool) -> str:
    mesh, rng = make_mesh(context=8), np.random.default_rng(0)
    split = NamedSharding(mesh, PartitionSpec(None, "context"))
    q, k, v = (jax.ShapeDtypeStruct((2, T, heads, 6), jnp.float32, sharding=split) for heads in (4, 2, 2))
    mask = Mask(jnp.asarray(np.sort(rng.integers(0, 3, (2, T), np.int32), axis=1)), T, causal)
    f = jax.jit(jax.grad(lambda q, k, v: jnp.sum(ring_attention(q, k, v, mask, mesh)[0] ** 2), (0, 1, 2)))
    return f.lower(q, k, v).compile().as_text()


KINDS = "all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter"


@pytest.mark.parametrize(
    ("causal", "swaps"), [pytest.param(False, 0, marks=pytest.mark.slow), (True, 12)], ids=["whole", "causal"]
)
def test_only_neighbours_talk_and_nothing_is_gathered(causal: bool, swaps: int):
    found = Counter(re.findall(rf" ({KINDS})(?:-start)?\(", ring_gradient(causal)))
    # Seven rounds each: of keys with values, and of their gradients. (Where rounds are a loop, keys and values go round
    # again on the way back; here there is none, and the compiler merges the two.) The causal layout sends two halves of
    # q, of k with v, and of o, and of the gradient of each, once.
    assert found == {"collective-permute": 2 * 7 + swaps}


@pytest.mark.slow
def test_second_derivatives_go_round_too():
    mesh, rng = make_mesh(context=2, data=4), np.random.default_rng(0)
    q, k, v = x = tuple(jnp.asarray(rng.normal(size=(4, 8, heads, 4)).astype(np.float32)) for heads in (2, 1, 1))
    mask = Mask(None, 8, causal=True)

    def product(attend: Any) -> Any:
        gradient = jax.grad(lambda q, k, v: jnp.sum(jnp.sin(attend(q, k, v))), (0, 1, 2))
        return jax.jit(lambda: jax.jvp(gradient, x, (q, v, k))[1])()

    for got, wanted in zip(
        product(lambda q, k, v: ring_attention(q, k, v, mask, mesh)[0]),
        product(lambda q, k, v: dense_attention(q, k, v, mask.dense())),
        strict=True,
    ):
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max())


def test_all_devices_have_the_same_number_of_scores_to_compute():
    from adaptlab.models.ring import _chunks, _Ring

    ring = _Ring("context", 4, True, 1, 1, True)
    held = [[int(c) for c in _chunks(ring, jnp.asarray(d))] for d in range(4)]
    assert sorted(chunk for chunks in held for chunk in chunks) == list(range(8))
    for turn in range(4):
        work = {sum(q >= k for q in held[d] for k in held[(d - turn) % 4]) for d in range(4)}
        assert len(work) == 1, turn


@pytest.mark.parametrize(("causal", "parts"), [(True, 16), (False, 8)])
def test_rows_that_do_not_divide_are_errors_that_say_what_does(causal: bool, parts: int):
    q, k = jnp.zeros((1, 20, 2, 4)), jnp.zeros((1, 20, 1, 4))
    with pytest.raises(ValueError, match=rf"20 tokens .* context=8.* in {parts} parts; choose a length of 16"):
        ring_attention(q, k, k, Mask(None, 20, causal), make_mesh(context=8))
