"""Spectra of updates, on matrices whose singular values are known, in float64."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf
from adaptlab.adapt import full, lora, partition
from adaptlab.measure.update import (
    Factors,
    dense_update,
    effective_rank,
    frobenius,
    participation,
    singular_values,
    singular_vectors,
    stable_rank,
    updates,
)

L, D, F, R = 2, 7, 5, 3


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def orthonormal(seed: int, rows: int, columns: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(rows, columns)))[0]


def with_values(seed: int, s: Any, rows: int = D, columns: int = F) -> jax.Array:
    """A stack of L matrices with singular values s."""
    k = len(s)
    parts = [orthonormal(seed + i, rows, k) * np.array(s) @ orthonormal(seed + 9 + i, columns, k).T for i in range(L)]
    return jnp.asarray(np.stack(parts))


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def test_singular_values_are_those_the_matrices_were_made_with():
    s = singular_values(with_values(0, [3.0, 1.0, 0.25]))
    np.testing.assert_allclose(s, [[3.0, 1.0, 0.25, 0.0, 0.0]] * L, atol=1e-14)


@pytest.mark.parametrize("rank", [1, 3, 5, 6, 9])
def test_factors_have_the_singular_values_and_vectors_of_their_product(rank: int):
    factors = Factors(normal(0, L, D, rank), normal(1, L, rank, F))
    product = np.asarray(factors.a) @ np.asarray(factors.b)
    wanted = np.linalg.svd(product, compute_uv=False)[:, : min(rank, F)]
    np.testing.assert_allclose(singular_values(factors), wanted, rtol=1e-12)
    u, s, vt = singular_vectors(factors)
    np.testing.assert_allclose(s, wanted, rtol=1e-12)
    np.testing.assert_allclose((u * s[:, None, :]) @ vt, product, atol=1e-12)
    np.testing.assert_allclose(u.mT @ u, np.broadcast_to(np.eye(min(rank, F)), (L, *[min(rank, F)] * 2)), atol=1e-12)


def test_ranks_of_equal_singular_values_are_their_number():
    s = singular_values(with_values(0, [2.0, 2.0, 2.0]))
    for rank in (stable_rank, effective_rank, participation):
        np.testing.assert_allclose(rank(s), [3.0] * L, rtol=1e-11)


def test_ranks_of_unequal_singular_values_are_their_definitions():
    s = jnp.array([4.0, 2.0, 1.0])
    assert float(stable_rank(s)) == pytest.approx(21 / 16)
    assert float(participation(s)) == pytest.approx(21**2 / (256 + 16 + 1))
    p = np.array([4, 2, 1]) / 7
    assert float(effective_rank(s)) == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert float(frobenius(s)) == pytest.approx(np.sqrt(21))


def test_ranks_do_not_change_with_the_size_of_the_update():
    s = jnp.array([4.0, 2.0, 1.0])
    for rank in (stable_rank, effective_rank, participation):
        assert float(rank(s * 1e-9)) == pytest.approx(float(rank(s)), rel=1e-12)
        assert float(rank((s * 1e-9).astype(jnp.float32))) == pytest.approx(float(rank(s)), rel=1e-5)


def test_no_update_has_no_rank():
    for rank in (stable_rank, effective_rank, participation):
        assert np.isnan(float(rank(jnp.zeros(3))))


BASE = {"layers": {"one": {"kernel": np.ones((L, D, F))}, "two": {"kernel": np.ones((L, F, D))}}, "head": np.ones(3)}


def base() -> Any:
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), BASE)


def moved(tree: Any) -> Any:
    """The tree with noise, in float32: LoRA's scale is."""
    return jax.tree.map(lambda x: (x + normal(x.size, *x.shape).astype(x.dtype)).astype(jnp.float32), tree)


def test_the_update_of_lora_stays_in_factors_and_that_of_full_fine_tuning_is_the_difference():
    weights = base()
    for adaptation, kind in ((lora(R, alpha=6.0), Factors), (full(), jax.Array)):
        delta = moved(adaptation.init(jax.random.key(0), weights))
        params = adaptation.bind(weights, delta)
        found = updates(weights, params)
        assert list(found) == ["layers/one/kernel", "layers/two/kernel"]
        for path, update in found.items():
            name = path.split("/")[1]
            wanted = leaf.dense(params["layers"][name]["kernel"]) - weights["layers"][name]["kernel"]
            assert isinstance(update, kind)
            np.testing.assert_allclose(dense_update(update), wanted, atol=1e-5)


def test_an_effective_rank_bounds_the_rank_of_the_update():
    weights = base()
    adaptation = lora(4, effective_rank=2.0)
    delta = moved(adaptation.init(jax.random.key(0), weights))
    s = singular_values(updates(weights, adaptation.bind(weights, delta))["layers/one/kernel"])
    assert np.all(np.asarray(s[:, :2]) > 1e-3)
    np.testing.assert_allclose(s[:, 2:], 0.0, atol=1e-6 * float(s.max()))


def test_side_paths_on_side_paths_add_up_and_anything_else_is_dense():
    w = normal(7, L, D, F)

    def side(on: Any, seed: int) -> leaf.LowRank:
        return leaf.LowRank(on, normal(seed, L, D, 2), normal(seed + 1, L, 2, F), jnp.array([2.0, 0.5]))

    nested, other = side(side(w, 0), 5), side(w + 1.0, 0)
    for changed, kind in ((nested, Factors), (other, jax.Array)):
        update = updates({"kernel": w}, {"kernel": changed}, "kernel")["kernel"]
        assert isinstance(update, kind)
        np.testing.assert_allclose(dense_update(update), leaf.dense(changed) - w, atol=1e-12)


def test_the_update_of_a_factored_weight_is_measured_from_the_weight_and_stays_in_factors():
    w = normal(0, D, F)
    base = {"kernel": leaf.Factored(w, normal(1, D, R), normal(2, R, F))}
    changed = leaf.LowRank(w, normal(2, D, R), normal(3, R, F), jnp.array(1.0))
    update = updates(base, {"kernel": changed}, "kernel")["kernel"]
    assert isinstance(update, Factors)
    np.testing.assert_allclose(dense_update(update), leaf.dense(changed) - w, atol=1e-14)


def test_what_is_not_adapted_has_no_update():
    weights = base()
    some = lora(R, select="layers/one/kernel")
    parts = partition({"layers/two/.*": full(), ".*": lora(R, select=".*one.*")})
    for adaptation, paths in ((some, ["one"]), (parts, ["one", "two"])):
        params = adaptation.bind(weights, adaptation.init(jax.random.key(0), weights))
        assert [path.split("/")[1] for path in updates(weights, params)] == paths


def test_what_is_no_matrix_is_refused():
    weights = base()
    params = full().bind(weights, moved(weights))
    with pytest.raises(ValueError, match=r"'head' has shape \(3,\); narrow `select`"):
        updates(weights, params, "head")
    with pytest.raises(ValueError, match="matches nothing"):
        updates(weights, params, "layer/.*")
