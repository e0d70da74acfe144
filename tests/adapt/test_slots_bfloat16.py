"""What adds computation computes it in the model's own precision, and is recomputed with the layers it stands in."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import ClosedJaxpr

from adaptlab import tree
from adaptlab.adapt import Adaptation, prepared
from adaptlab.models import LlamaShape, llama
from tests.laws.slots import rows
from tests.laws.table import MODELS, AdaptationRow, scattered

SHAPE = LlamaShape(32, width=16, depth=2, heads=4, kv_heads=2, head_width=6, ffn_width=20, tied=True)
EXACT, SHORT = llama(SHAPE), llama(SHAPE, dtype="bfloat16", remat="full")
ROW = MODELS["llama_tied"]._replace(model=EXACT)
BASE = EXACT.init(jax.random.key(0))
DEFAULT = ("compacter", "fusion", "prefix_reparametrised")  # each has sums that the others do not
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 32, (2, 6)))


MARKED = [n if n in DEFAULT else pytest.param(n, marks=pytest.mark.slow) for n in rows(AdaptationRow)]


@pytest.mark.parametrize("name", MARKED)
def test_a_bfloat16_model_computes_what_a_float32_model_does_to_its_precision(name: str):
    adaptation: Adaptation = rows(AdaptationRow)[name].make(ROW, 1.0)
    base = prepared(adaptation, BASE)
    delta = scattered(adaptation.init(jax.random.key(1), base), 1, scale=0.05)

    def run(delta: Any, model: Any) -> Any:
        def squares(delta: Any) -> Any:
            logits = model.apply(adaptation.bind(base, delta), TOKENS)
            return jnp.sum(logits**2), logits

        return jax.grad(squares, has_aux=True)(delta)

    (short_gradient, short), (exact_gradient, exact) = jax.jit(lambda d: [run(d, m) for m in (SHORT, EXACT)])(delta)
    assert short.dtype == jnp.float32
    np.testing.assert_allclose(short, exact, rtol=0, atol=0.02 * np.abs(exact).max())
    assert {x.dtype for x in jax.tree.leaves(short_gradient)} == {jnp.dtype("float32")}
    error = tree.norm(jax.tree.map(jnp.subtract, short_gradient, exact_gradient))
    assert error < 0.05 * tree.norm(exact_gradient)


def equations(jaxpr: Any) -> Iterator[Any]:
    """All equations, those of functions that are called among them."""
    for equation in jaxpr.eqns:
        yield equation
        for inner in equation.params.values():
            if isinstance(inner, ClosedJaxpr):
                yield from equations(inner.jaxpr)


def test_added_matrix_products_are_in_the_models_precision():
    adaptation = rows(AdaptationRow)["houlsby"].make(ROW, 1.0)
    delta = adaptation.init(jax.random.key(1), BASE)
    node = adaptation.bind(BASE, delta)["layers"]["attention_adapter"]
    node = jax.tree.map(lambda x: x[0], node)
    x = jnp.ones((2, 3, 16), jnp.bfloat16)
    products = [e for e in equations(jax.make_jaxpr(node)(x, x).jaxpr) if e.primitive.name == "dot_general"]
    assert [{v.aval.dtype for v in e.invars} for e in products] == [{jnp.dtype("bfloat16")}] * 2
