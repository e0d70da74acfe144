import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf, tree
from adaptlab.adapt import full, lora, materialize, quantization_aware
from adaptlab.leaf import FakeQuantized
from adaptlab.models import LlamaShape, Quantization, llama, quantize
from tests.laws.table import scattered

MODEL = llama(LlamaShape(40, width=32, depth=2, heads=4, kv_heads=2, head_width=8, ffn_width=64, tied=False))
BASE = jax.device_get(scattered(jax.jit(MODEL.init)(jax.random.key(0)), 0))
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 6), np.int32))
SCHEMES: Any = pytest.mark.parametrize(("scheme", "block"), [("nf4", 16), ("fp4", 32), ("int8", 0), ("dynamic8", 16)])


def merged(adaptation: Any, delta: Any) -> dict[str, Any]:
    return tree.flatten(jax.jit(lambda base, d: materialize(adaptation.bind(base, d)))(BASE, delta))


@SCHEMES
@pytest.mark.parametrize("inner", [full(), lora(2)], ids=["full", "lora"])
def test_it_starts_as_the_quantised_base_bit_by_bit(scheme: Any, block: int, inner: Any):
    adaptation = quantization_aware(inner, scheme, block=block)
    got = merged(adaptation, adaptation.init(jax.random.key(0), BASE))
    wanted = jax.jit(materialize)(quantize(BASE, Quantization(scheme, block=block, double=False)))
    for path, w in tree.flatten(wanted).items():
        np.testing.assert_array_equal(got[path], w, err_msg=path)


@pytest.mark.parametrize(("scheme", "block"), [("nf4", 16), ("fp4", 32), ("int8", 0)])
def test_what_was_trained_can_be_rounded_and_stays_what_it_is(scheme: Any, block: int):
    adaptation = quantization_aware(full(), scheme, block=block)
    trained = jax.device_get(merged(adaptation, scattered(BASE, 1)))
    again = jax.jit(materialize)(quantize(tree.unflatten(trained), Quantization(scheme, block=block, double=False)))
    for path, w in tree.flatten(again).items():
        np.testing.assert_allclose(w, trained[path], rtol=1e-6, err_msg=path)


def node(w: jax.Array) -> FakeQuantized:
    return FakeQuantized(w, "nf4", 4)


def test_the_backward_pass_takes_rounding_for_the_identity():
    w, x = (
        jnp.asarray(np.random.default_rng(i).normal(size=s), jnp.float32) for i, s in enumerate([(3, 8, 8), (5, 8)])
    )
    rounded = leaf.dense(node(w))
    assert float(jnp.abs(rounded - w).max()) > 0.01

    def plain(w: Any) -> jax.Array:
        return jnp.sum(jax.lax.scan(lambda h, layer: (jnp.sin(leaf.dot(h, layer)), None), x, w)[0])

    def through(w: jax.Array) -> jax.Array:
        return plain(node(w))

    np.testing.assert_allclose(jax.grad(through)(w), jax.grad(plain)(rounded), rtol=1e-5, atol=1e-5)
    v = jnp.ones_like(w)
    products = [jax.jvp(jax.grad(f), (at,), (v,))[1] for f, at in ((through, w), (plain, rounded))]
    np.testing.assert_allclose(*products, rtol=1e-4, atol=1e-4)


def test_rows_of_a_table_are_rounded_rows():
    table = jnp.asarray(np.random.default_rng(0).normal(size=(10, 8)), jnp.float32)
    got = leaf.take(FakeQuantized(table, "int8", None, transposed=False), jnp.asarray([3, 1]), jnp.float32)
    wanted = leaf.dense(leaf.quantize(table[jnp.asarray([3, 1])], "int8", block=None, transposed=False))
    np.testing.assert_array_equal(got, wanted)


def test_training_for_few_bits_beats_rounding_afterwards():
    rng = np.random.default_rng(0)
    # Inputs in a few directions: errors of rounding may cancel, if one looks for it.
    few, mix, target = (jnp.asarray(rng.normal(size=s), jnp.float32) for s in ((64, 3), (3, 16), (16, 8)))
    x = few @ mix
    y = x @ target

    def error(w: Any) -> jax.Array:
        return jnp.mean((leaf.dot(x, w) - y) ** 2)

    @jax.jit
    def trained() -> Any:
        def step(carry: Any, _: Any) -> Any:
            w, best = carry
            loss, g = jax.value_and_grad(lambda w: error(node(w)))(w)
            return (w - 0.01 * g, jnp.minimum(best, loss)), None

        return jax.lax.scan(step, (target, error(node(target))), None, length=300)[0][1]

    assert float(trained()) < 0.5 * float(error(node(target)))


def test_the_backward_pass_keeps_no_rounded_copies_of_the_layers():
    layers, width = 64, 128
    w = jnp.ones((layers, width, width))

    def loss(x: jax.Array, w: Any) -> jax.Array:
        stack = FakeQuantized(w, "nf4", 64)
        return jnp.sum(jax.lax.scan(lambda h, layer: (jnp.tanh(leaf.dot(h, layer)), None), x, stack)[0])

    x = jnp.ones((4, width))
    temporaries = jax.jit(jax.grad(loss)).lower(x, w).compile().memory_analysis().temp_size_in_bytes
    assert temporaries < w.nbytes / 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": 24}, "block=24 does not divide rows of 32"),
        ({"select": "norm/scale"}, "quantization_aware selects 'norm/scale' .*narrow `select`"),
        ({"select": "layer/.*"}, "matches nothing"),
    ],
)
def test_what_cannot_be_rounded_is_an_error_before_training(options: dict[str, Any], message: str):
    adaptation = quantization_aware(full(), **options)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda b: MODEL.apply(adaptation.bind(b, adaptation.init(jax.random.key(0), b)), TOKENS), BASE)


def test_an_unknown_scheme_is_an_error():
    scheme: Any = "nf3"
    with pytest.raises(ValueError, match="code='nf3' is not one of"):
        inspect.unwrap(quantization_aware)(full(), scheme)
