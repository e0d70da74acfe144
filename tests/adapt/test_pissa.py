from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf, tree
from adaptlab.adapt import as_lora, full, lora, materialize, partition, pissa, prepared
from adaptlab.adapt.pissa import leading_triples
from adaptlab.optim import sgd
from adaptlab.stats import Mean
from adaptlab.train import device_numbers, l2_sp, make_program
from tests.laws.table import scattered

BASE = scattered(
    {"layers": {"q": {"kernel": jnp.zeros((2, 9, 6))}, "norm": {"scale": jnp.zeros((2, 6))}}}, 0, scale=1.0
)
W = np.asarray(BASE["layers"]["q"]["kernel"])
KEY = jax.random.key(0)


def start(adaptation: Any) -> tuple[Any, Any, Any]:
    base = prepared(adaptation, BASE)
    delta = adaptation.init(KEY, base)
    return base, delta, delta["layers"]["q"]["kernel"]


def best(w: np.ndarray, rank: int) -> np.ndarray:
    """The best approximation of a rank, by NumPy in float64."""
    u, s, v = np.linalg.svd(w.astype(np.float64), full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ v[..., :rank, :]


def test_the_factors_start_as_the_leading_triples_of_every_layer():
    _, _, factors = start(pissa(2))
    a, b = np.asarray(factors["a"]), np.asarray(factors["b"])
    np.testing.assert_allclose(a @ b, best(W, 2), atol=1e-5)
    root = np.sqrt(np.linalg.svd(W, compute_uv=False)[:, :2])
    np.testing.assert_allclose(np.linalg.norm(a, axis=-2), root, rtol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(b, axis=-1), root, rtol=1e-5)


def test_what_is_frozen_is_the_residual():
    base, delta, _ = start(pissa(2))
    zero = jax.tree.map(jnp.zeros_like, delta)
    residual = materialize(pissa(2).bind(base, zero))["layers"]["q"]["kernel"]
    np.testing.assert_allclose(residual, W - best(W, 2), atol=1e-5)


def test_a_prepared_base_holds_no_second_matrix():
    base, _, _ = start(pissa(2))
    assert base["layers"]["q"]["kernel"].w is BASE["layers"]["q"]["kernel"]
    assert base["layers"]["norm"]["scale"] is BASE["layers"]["norm"]["scale"]
    assert tree.count(base) - tree.count(BASE) == 2 * 2 * (9 + 6)


def test_the_start_is_the_base_bit_by_bit_and_a_small_change_survives_bfloat16():
    base, delta, _ = start(pissa(2))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 9)), jnp.bfloat16)

    def output(delta: Any) -> np.ndarray:
        node = pissa(2).bind(base, delta)["layers"]["q"]["kernel"]
        side = leaf.LowRank(jnp.zeros((9, 6)), node.a[0], node.b[0], node.scale[0])
        return np.asarray(leaf.dot(x, side), np.float32)

    assert not np.any(output(delta))
    moved = scattered(delta, 1, scale=1e-4)
    change = np.asarray(materialize(pissa(2).bind(base, moved))["layers"]["q"]["kernel"][0] - W[0])
    wanted = np.asarray(x, np.float32) @ change
    assert np.linalg.norm(output(moved) - wanted) < 0.01 * np.linalg.norm(wanted)


def test_the_scale_leaves_the_start_but_not_the_movement():
    plain, scaled = pissa(2), pissa(2, alpha=8.0)
    (base, _, factors), (_, _, shrunk) = start(plain), start(scaled)
    np.testing.assert_allclose(shrunk["a"], factors["a"] / 2, rtol=1e-6)
    moved = jax.tree.map(lambda x: x + 0.5, scaled.init(KEY, base))
    merged = np.asarray(materialize(scaled.bind(base, moved))["layers"]["q"]["kernel"])
    a, b = np.asarray(shrunk["a"]), np.asarray(shrunk["b"])
    np.testing.assert_allclose(merged, W - best(W, 2) + 4 * (a + 0.5) @ (b + 0.5), atol=1e-4)


def test_an_effective_rank_is_the_adaptation_of_that_rank():
    wide, narrow = pissa(4, effective_rank=2.0), pissa(2)
    (base, delta, _), (small_base, small, _) = start(wide), start(narrow)
    moved = tree.map_with_path(lambda path, x: x + 1.0, delta)
    got = materialize(wide.bind(base, moved))["layers"]["q"]["kernel"]
    wanted = materialize(narrow.bind(small_base, jax.tree.map(lambda x: x + 1.0, small)))["layers"]["q"]["kernel"]
    np.testing.assert_allclose(got, wanted, atol=1e-4)


def test_the_randomised_factorisation_finds_the_leading_triples():
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (60, 40))
    w = (u[:, :40] * 0.8 ** np.arange(40)) @ v.T
    exact = best(w, 4)
    errors = []
    for iterations in (0, 4):
        a, b = leading_triples(jnp.asarray(w, jnp.float32), KEY, rank=4, iterations=iterations)
        errors.append(np.abs(np.asarray(a @ b) - exact).max())
    assert errors[1] < 1e-5 < errors[0]


def test_as_lora_is_the_same_model_over_the_base_as_it_was():
    adaptation = pissa(2, alpha=3.0)
    base, delta, _ = start(adaptation)
    bound = adaptation.bind(base, scattered(delta, 1))
    alone = lora(4, alpha=4.0).bind(BASE, as_lora(bound))
    for path, wanted in tree.flatten(materialize(bound)).items():
        np.testing.assert_allclose(tree.flatten(materialize(alone))[path], wanted, atol=1e-5)


def test_l2_sp_holds_the_factors_where_they_started():
    base, delta, _ = start(pissa(2))
    term = l2_sp(strength=2.0)
    assert float(term(delta, base)) == 0.0
    moved = jax.tree.map(lambda x: x + 1.0, delta)
    np.testing.assert_allclose(float(term(moved, base)), tree.count(delta), rtol=1e-5)


def test_a_partition_prepares_each_part():
    adaptation = partition({"layers/q/.*": pissa(2, select=".*"), ".*": full()})
    base = prepared(adaptation, BASE)
    assert leaf.is_node(base["layers"]["q"]["kernel"])
    assert base["layers"]["norm"]["scale"] is BASE["layers"]["norm"]["scale"]
    merged = materialize(adaptation.bind(base, adaptation.init(KEY, base)))
    np.testing.assert_allclose(merged["layers"]["q"]["kernel"], W, atol=1e-5)


def test_binding_to_a_base_that_is_not_prepared_is_an_error():
    _, delta, _ = start(pissa(2))
    with pytest.raises(ValueError, match=r"'layers/q/kernel' is as the base has it: bind PiSSA to prepared"):
        pissa(2).bind(BASE, delta)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0 must be at least 1; use frozen"),
        ({"rank": 7}, r"rank=7: 'layers/q/kernel' of shape \(2, 9, 6\) has only 6 singular values"),
        ({"iterations": -1}, "iterations=-1 must be 0 or more"),
        ({"select": "layers/norm/scale"}, "pissa selects 'layers/norm/scale'"),
    ],
    ids=str,
)
def test_what_cannot_be_adapted_is_an_error(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        prepared(pissa(**options), BASE)


def test_a_program_prepares_its_base_once_and_shares_what_it_leaves():
    program = make_program(
        lambda numbers: lambda params, batch, key: Mean(jnp.sum(leaf.dense(params["layers"]["q"]["kernel"]) ** 2), 1.0),
        lambda numbers: pissa(2, alpha=numbers["alpha"]),
        lambda numbers: sgd(0.01, total_steps=3),
    )
    numbers, seed = device_numbers({"alpha": 2.0}, 0)
    base = program.prepare(numbers, BASE)
    assert base["layers"]["q"]["kernel"].w is BASE["layers"]["q"]["kernel"]
    before, state = tree.digest(base), program.init(numbers, seed, base)
    losses = []
    for _ in range(3):
        state, metrics = program.step(numbers, seed, state, base, jnp.zeros(1))
        losses.append(float(metrics["loss"]))
    assert losses[2] < losses[1] < losses[0]
    assert tree.digest(base) == before
    again = program.bind(numbers, program.prepare(numbers, BASE), state.delta)
    assert tree.digest(materialize(again)) == tree.digest(materialize(program.bind(numbers, base, state.delta)))
