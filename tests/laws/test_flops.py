"""The FLOPs of a training step, method by method, are those of a formula in the sizes of the model.

The convention is that of `adaptlab.flops`: a product of M × K by K × N is 2 M K N, and what is not a matrix product is
free. A gradient takes, for each product x W of the forward pass, as much again for x's gradient and as much again for
W's, if it trains. Below: M parameters in the matrices of the layers, H in the head, T tokens a row behind P positions
that an adaptation adds; S = T + P.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import pytest

from adaptlab import tree
from adaptlab.adapt import (
    Adaptation,
    adalora,
    bottleneck,
    compacter,
    fisher_masked,
    freeze_below,
    frozen,
    full,
    ia3,
    layer_norm,
    lora,
    partition,
    pissa,
    prefix,
    prompt,
    selected,
    textual_inversion,
    vera,
)
from adaptlab.flops import count_flops
from adaptlab.models import LlamaShape, Model, Quantization, language_modelling, llama, quantize
from adaptlab.optim import adamw
from adaptlab.train import device_numbers, make_program
from tests.laws.table import LENGTH, ROWS, VOCABULARY, every_third, text_batch

SHAPE = LlamaShape(VOCABULARY, width=16, depth=2, heads=4, kv_heads=2, head_width=6, ffn_width=20, tied=False)
MODEL = llama(SHAPE, unroll=1)  # written out, the first layer's input would get no gradient
R, P = 3, 5
L, D, F = SHAPE.depth, SHAPE.width, SHAPE.ffn_width
INNER, KV = SHAPE.heads * SHAPE.head_width, SHAPE.kv_heads * SHAPE.head_width
ATTENTION = [(D, INNER), (D, KV), (D, KV), (INNER, D)]
MATRICES = [*ATTENTION, (D, F), (D, F), (F, D)]
M = L * sum(d * f for d, f in MATRICES)
H = D * VOCABULARY
TOKENS = ROWS * LENGTH


def attention(queries: int = LENGTH, keys: int = LENGTH) -> int:
    """q kᵀ and p v of all layers and rows, forwards."""
    return ROWS * L * 2 * 2 * queries * keys * INNER


def through(extra: float = 0, *, layers: int = TOKENS, mixing: int = 0) -> float:
    """A step that passes gradients through frozen matrices: 4 (M + H) a token, 3 times the attention and the extra.

    `extra` counts multiply-adds of trained matrices, of all tokens.
    """
    return 4 * (M * layers + H * TOKENS) + 3 * (mixing or attention()) + 6 * extra


def low_rank(matrices: list[tuple[int, int]]) -> int:
    """Σ L R (D + F), for all tokens."""
    return TOKENS * L * R * sum(d + f for d, f in matrices)


class Method(NamedTuple):
    """An adaptation of the tiny Llama, and the FLOPs of a step with it."""

    make: Callable[[Model], Adaptation]
    flops: float
    base: Callable[[Any], Any] = lambda base: base


def in_four_bits(base: Any) -> Any:
    return quantize(jax.device_get(base), Quantization("nf4", select="layers/.*/kernel", block=2))


METHODS = {
    "frozen": Method(lambda m: frozen(), 2 * (M + H) * TOKENS + attention()),
    "full": Method(lambda m: full(), 6 * (M + H) * TOKENS + 3 * attention()),
    "lora": Method(lambda m: lora(R), through(low_rank(MATRICES))),
    "lora_query_value": Method(
        lambda m: lora(R, select="layers/attention/(query|value)/kernel"),
        through(low_rank([(D, INNER), (D, KV)])),
    ),
    "qlora": Method(lambda m: lora(R), through(low_rank(MATRICES)), in_four_bits),
    # A B - A₀ B₀ as one product of rank 2 R, half of whose factors' gradients then cancel or are dropped.
    "pissa": Method(lambda m: pissa(R), through(2 * low_rank(MATRICES))),
    "adalora": Method(lambda m: adalora(R), through(low_rank(MATRICES))),
    # Random factors do not train: forwards and to x, but no gradient of their own.
    "vera": Method(lambda m: vera(R), through() + 4 * low_rank(MATRICES)),
    "ia3": Method(lambda m: ia3(), through()),
    "layer_norm": Method(lambda m: layer_norm(), through()),
    "houlsby": Method(lambda m: bottleneck(R, slots=m.slots()), through(TOKENS * 2 * L * 2 * D * R)),
    "pfeiffer": Method(lambda m: bottleneck(R, placement="pfeiffer", slots=m.slots()), through(TOKENS * L * 2 * D * R)),
    "parallel": Method(lambda m: bottleneck(R, placement="parallel", slots=m.slots()), through(TOKENS * L * 2 * D * R)),
    # Both Kronecker products: s, then the rules, then t.
    "compacter": Method(
        lambda m: compacter(6, terms=2, rank=R, slots=m.slots()), through(TOKENS * 2 * L * 2 * 2 * R * (D + 6 + 2**2))
    ),
    # Keys of P more positions.
    "prefix": Method(lambda m: prefix(P, slots=m.slots()), through(mixing=attention(LENGTH, LENGTH + P))),
    # P more tokens in the layers, none in the head.
    "prompt": Method(
        lambda m: prompt(P, slots=m.slots()),
        through(layers=ROWS * (LENGTH + P), mixing=attention(LENGTH + P, LENGTH + P)),
    ),
    "textual_inversion": Method(lambda m: textual_inversion(range(1, 4)), through()),
    # Nothing below the head needs a gradient: no backward pass through the layers.
    "linear_probe": Method(lambda m: selected("head/kernel"), 2 * M * TOKENS + 4 * H * TOKENS + attention()),
    # A conditional counts as its dearer branch: the count does not see what the frozen layers save.
    "freeze_below": Method(lambda m: freeze_below(1), 6 * (M + H) * TOKENS + 3 * attention()),
    "fisher_masked": Method(lambda m: fisher_masked(every_third(m)), 6 * (M + H) * TOKENS + 3 * attention()),
    "partition": Method(
        lambda m: partition({"layers/attention/.*/kernel": lora(R, select=".*"), "head/.*": full(), ".*": frozen()}),
        through(low_rank(ATTENTION)) + 2 * H * TOKENS,
    ),
}


@functools.cache
def weights() -> Any:
    return jax.jit(MODEL.init)(jax.random.key(0))


def step_flops(method: Method) -> int:
    adaptation = method.make(MODEL)
    program = make_program(
        lambda numbers: language_modelling(MODEL),
        lambda numbers: adaptation,
        lambda numbers: adamw(numbers["lr"], total_steps=9),
    )
    base = method.base(weights())
    scalars = device_numbers({"lr": 0.1}, 0)
    base = program.prepare(scalars[0], base)
    state = jax.eval_shape(program.init, *scalars, base)
    norm = 2 * tree.count(state.delta)  # of the gradient, which a step reports
    return count_flops(program.step, *scalars, state, base, text_batch(0)) - norm


@pytest.mark.parametrize("name", METHODS)
def test_a_step_takes_the_flops_of_its_formula(name: str):
    assert step_flops(METHODS[name]) == METHODS[name].flops
