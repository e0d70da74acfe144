"""The low-rank methods compute what PEFT computes: stored, and here and now where torch is installed."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptlab import leaf, tree
from adaptlab.adapt import dora, lora, lora_conv, materialize, pissa, prepared, vera
from adaptlab.optim import allocate_ranks
from tests.golden import peft_methods
from tests.golden.peft_methods import ALLOCATED, ALPHA, PATH, RANK, STEPS

STORED = dict(np.load(PATH))
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=["stored", pytest.param("computed", marks=pytest.mark.reference)])
def theirs(request: pytest.FixtureRequest) -> Any:
    """`method -> {name: array}`."""
    arrays = STORED if request.param == "stored" else peft_methods.compute()
    return lambda method: {
        key.removeprefix(f"{method}/"): jnp.asarray(x) for key, x in arrays.items() if key.startswith(f"{method}/")
    }


def kernel(w: Any) -> Any:
    return {"q": {"kernel": w}}


def test_dora_and_its_gradients(theirs: Any):
    t = theirs("dora")
    adaptation = dora(RANK, alpha=ALPHA, select="q/kernel")
    np.testing.assert_allclose(
        adaptation.init(jax.random.key(0), kernel(t["w"]))["q"]["kernel"]["magnitude"], t["m_start"], **CLOSE
    )

    def loss(delta: Any) -> Any:
        y = leaf.dot(t["x"], adaptation.bind(kernel(t["w"]), kernel(delta))["q"]["kernel"])
        return jnp.sum(y**2), y

    delta = {"a": t["a"], "b": t["b"], "magnitude": t["m"]}
    grads, y = jax.grad(loss, has_aux=True)(delta)
    np.testing.assert_allclose(y, t["y"], **CLOSE)
    for name, wanted in (("a", "a_grad"), ("b", "b_grad"), ("magnitude", "m_grad")):
        np.testing.assert_allclose(grads[name], t[wanted], rtol=1e-4, atol=1e-4, err_msg=name)


def test_vera_shares_corners_of_the_same_matrices(theirs: Any):
    t = theirs("vera")
    base = {name: {"kernel": t[f"{name}/w"]} for name in "qv"}
    delta = {name: {"kernel": {"d": t[f"{name}/d"], "b": t[f"{name}/b"]}} for name in "qv"}
    bound = vera(RANK, select=".*", projection_seed=5).bind(base, delta)
    for name in "qv":
        np.testing.assert_allclose(leaf.dot(t[f"{name}/x"], bound[name]["kernel"]), t[f"{name}/y"], **CLOSE)


@pytest.mark.parametrize(("method", "iterations"), [("pissa", None), ("pissa_fast", 16)])
def test_pissa_starts_from_the_same_product_and_residual(theirs: Any, method: str, iterations: int | None):
    t = theirs(method)
    adaptation = pissa(RANK, alpha=ALPHA, select="q/kernel", iterations=iterations)
    base = prepared(adaptation, kernel(t["w"]))
    delta = adaptation.init(jax.random.key(0), base)
    factors = delta["q"]["kernel"]
    np.testing.assert_allclose(factors["a"] @ factors["b"], t["product"], **CLOSE)
    zero = jax.tree.map(jnp.zeros_like, delta)
    np.testing.assert_allclose(materialize(adaptation.bind(base, zero))["q"]["kernel"], t["residual"], **CLOSE)


def test_lora_of_a_convolution(theirs: Any):
    t = theirs("conv")
    adaptation = lora_conv(RANK, alpha=ALPHA, select="q/kernel")
    node = adaptation.bind(kernel(t["w"]), kernel({"a": t["a"], "b": t["b"]}))["q"]["kernel"]
    y = leaf.conv(t["x"], node, strides=(2, 1), padding=[(1, 1), (0, 0)])
    np.testing.assert_allclose(y, t["y"], **CLOSE)


def test_adalora_keeps_the_same_triples_after_every_update(theirs: Any):
    t = theirs("adalora")
    params = {name: {part: t[f"start/{name}/{part}"] for part in ("p", "lambda", "q")} for name in ALLOCATED}
    still = optax.scale(0.0)
    transform = allocate_ranks(still, total_steps=STEPS, target_rank=2.0, warmup=0.2, final=0.3, every=2.0)
    state, kept = transform.init(params), []
    update = jax.jit(transform.update)
    for step in range(STEPS):
        grads = tree.map_with_path(lambda path, _, step=step: t[f"grad/{path}"][step], params)
        updates, state = update(grads, state, params)
        params: Any = optax.apply_updates(params, updates)
        kept.append([np.asarray(params[name]["lambda"]) != 0 for name in ALLOCATED])
    np.testing.assert_array_equal(np.array(kept), t["kept"])
    assert 1 <= np.sum(kept[-1]) < np.sum(kept[0]) == 12


def test_the_stored_values_do_not_hold_for_another_method():
    t = {key.removeprefix("dora/"): jnp.asarray(x) for key, x in STORED.items() if key.startswith("dora/")}
    node = lora(RANK, alpha=ALPHA, select=".*").bind(kernel(t["w"]), kernel({"a": t["a"], "b": t["b"]}))["q"]["kernel"]
    assert np.abs(leaf.dot(t["x"], node) - t["y"]).max() > 0.1
