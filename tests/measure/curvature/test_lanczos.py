"""Eigenpairs of operators whose spectrum is known."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from adaptlab.measure.curvature import bottom_eigenpairs, hessian, spectral_density, top_eigenpairs
from adaptlab.measure.curvature.density import density_samples
from adaptlab.measure.curvature.lanczos import _eigenpairs, quadrature
from adaptlab.measure.curvature.operators import pack, packable
from adaptlab.measure.curvature.vectors import without
from adaptlab.stats import Mean
from adaptlab.tree import dot
from tests.measure.curvature.toy import OBJECTIVES, REFERENCE, digits, network, operator, quadratic, with_spectrum

KEY = jax.random.key(0)
SIZE = 64
VALUES = np.concatenate([[-4.0, -3.0], np.linspace(-0.5, 0.5, SIZE - 6), [2.0, 3.0, 5.0, 9.0]])


@pytest.fixture(scope="module")
def matrix() -> np.ndarray:
    return with_spectrum(VALUES)


def test_both_ends_of_a_known_spectrum_are_found(matrix: np.ndarray):
    with jax.enable_x64(True):
        settings: Any = {"key": KEY, "basis": 7, "tolerance": 1e-4}
        top = top_eigenpairs(operator(matrix), 3, **settings)
        bottom = bottom_eigenpairs(operator(matrix), 2, **settings)
    assert min(int(top.products), int(bottom.products)) > 7
    np.testing.assert_allclose(top.values, [9.0, 5.0, 3.0], rtol=1e-6)
    np.testing.assert_allclose(bottom.values, [-4.0, -3.0], rtol=1e-6)
    for pairs in (top, bottom):
        v = np.asarray(pairs.vectors["w"])
        np.testing.assert_allclose(v @ v.T, np.eye(len(v)), atol=1e-12)
        true = np.linalg.norm(v @ matrix - np.asarray(pairs.values)[:, None] * v, axis=1)
        np.testing.assert_allclose(true, pairs.residuals, rtol=1e-4, atol=1e-12)


def test_in_float32_a_restarted_search_finds_the_same(matrix: np.ndarray):
    for basis in (None, 8):
        pairs = top_eigenpairs(operator(matrix.astype(np.float32)), 3, key=KEY, basis=basis)
        np.testing.assert_allclose(pairs.values, [9.0, 5.0, 3.0], rtol=2e-6)


def test_a_search_that_is_cut_short_says_how_far_it_is(matrix: np.ndarray):
    pairs = top_eigenpairs(operator(matrix.astype(np.float32)), 3, key=KEY, max_products=5)
    assert int(pairs.products) == 5
    distance = np.abs(np.asarray(pairs.values)[:, None] - VALUES[None]).min(axis=1)
    assert np.all(distance <= np.asarray(pairs.residuals) * 1.001)
    assert np.max(pairs.residuals) > 0.01


def test_a_looser_tolerance_and_a_better_start_take_fewer_products(matrix: np.ndarray):
    a = operator(matrix.astype(np.float32))
    taken = [int(top_eigenpairs(a, 3, key=KEY, tolerance=t).products) for t in (1e-1, 1e-2, 1e-4)]
    assert taken == sorted(taken)
    assert taken[0] < taken[2] < SIZE
    found = top_eigenpairs(a, 3, key=KEY, tolerance=1e-4).vectors["w"]
    assert int(top_eigenpairs(a, 1, key=KEY, start={"w": found[0]}).products) <= 2


def test_the_same_key_gives_the_same_bits(matrix: np.ndarray):
    a = operator(matrix.astype(np.float32))
    first, second, other = (top_eigenpairs(a, 3, key=jax.random.key(seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.vectors["w"], second.vectors["w"])
    assert np.any(np.asarray(first.vectors["w"]) != np.asarray(other.vectors["w"]))


def test_what_is_left_of_a_space_of_low_rank_is_zero():
    a = with_spectrum([3.0, 2.0] + [0.0] * (SIZE - 2)).astype(np.float32)
    pairs = top_eigenpairs(operator(a), 3, key=KEY)
    np.testing.assert_allclose(pairs.values, [3, 2, 0], atol=2e-6)
    v = np.asarray(pairs.vectors["w"])
    np.testing.assert_allclose(v @ v.T, np.eye(3), atol=2e-5)


def test_all_eigenpairs_of_a_small_space_are_found():
    values = np.array([4.0, 1.0, 0.5, -0.25, -2.0])
    pairs = top_eigenpairs(operator(with_spectrum(values).astype(np.float32)), 5, key=KEY)
    np.testing.assert_allclose(pairs.values, values, atol=2e-6)
    assert int(pairs.products) == 5


def test_a_multiple_of_the_identity_is_no_trouble():
    pairs = top_eigenpairs(operator(2 * np.eye(SIZE, dtype=np.float32)), 3, key=KEY)
    np.testing.assert_allclose(pairs.values, 2, rtol=1e-6)


def test_a_hundred_steps_in_float32_make_no_copies():
    """Without reorthogonalisation the top eigenvalue returns again and again, and its weight is split."""
    values = np.concatenate([np.linspace(0, 0.1, 150), [1.0, 2.0, 4.0]])
    a = jnp.asarray(with_spectrum(values), jnp.float32)
    start = {"w": jax.random.normal(KEY, (len(values),))}
    run = jax.jit(lambda a, v: quadrature(lambda v: {"w": a @ v["w"]}, v, 100))
    nodes = np.asarray(run(a, start).nodes)
    np.testing.assert_allclose(nodes[nodes > 0.2], [1.0, 2.0, 4.0], rtol=2e-6)


def test_many_operators_at_once_are_each_alone():
    matrices = jnp.asarray([with_spectrum(VALUES * c, seed) for seed, c in enumerate([1.0, 0.5, 2.0])], jnp.float32)
    one = lambda matrix: top_eigenpairs(operator(matrix), 3, key=KEY).values  # noqa: E731
    alone = [one(matrix) for matrix in matrices]
    np.testing.assert_allclose(jax.vmap(one)(matrices), jnp.stack(alone), rtol=2e-6)


def test_eight_devices_find_what_one_finds(matrix: np.ndarray):
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    matrix = matrix.astype(np.float32)
    spread = jax.device_put(matrix, jax.sharding.NamedSharding(mesh, P("data", None)))
    pairs = [top_eigenpairs(operator(m), 3, key=KEY) for m in (matrix, spread)]
    np.testing.assert_allclose(pairs[0].values, pairs[1].values, rtol=2e-6)
    dots = np.abs(np.sum(np.asarray(pairs[0].vectors["w"]) * np.asarray(pairs[1].vectors["w"]), axis=1))
    np.testing.assert_allclose(dots, 1, atol=1e-5)


def test_vectors_in_one_array_find_what_trees_find():
    """The five largest of a network, by restarts, and a density: leaves of several shapes, and orders that matter."""
    h = hessian(
        OBJECTIVES["ce"], network(jnp.asarray(REFERENCE["trained_ce_w"], jnp.float32)), None, [digits(np.float32)]
    )
    assert packable(h)
    whole, tree = (_eigenpairs(h, KEY, None, 1e-3, 500, 5, 12, packs) for packs in (True, False))
    np.testing.assert_allclose(whole.values, tree.values, rtol=1e-5)
    assert jax.tree.map(jnp.shape, whole.vectors) == jax.tree.map(jnp.shape, tree.vectors)
    for i in range(5):
        cosine = dot(*(jax.tree.map(lambda x, i=i: x[i], pairs.vectors) for pairs in (whole, tree)))
        np.testing.assert_allclose(abs(cosine), 1, atol=1e-3)
    again = _eigenpairs(h, KEY, jax.tree.map(lambda x: x[0], whole.vectors), 1e-2, 500, 1, 12, True)
    assert int(again.products) <= 2
    np.testing.assert_allclose(
        spectral_density(h, key=KEY, probes=2, steps=8).nodes, density_samples(h, KEY, 2, 8)[0], rtol=1e-3, atol=1e-4
    )


def test_the_zeros_at_the_end_of_a_long_vector_are_in_no_spectrum():
    values = jnp.concatenate([jnp.linspace(1, 2, 2**14), jnp.asarray([0.5, 3.0, 5.0])])
    diagonal = lambda theta, base, batch, key: Mean(0.5 * jnp.sum(batch * theta["w"] ** 2), jnp.ones(()))  # noqa: E731
    h = hessian(diagonal, {"w": jnp.zeros(values.shape)}, None, [values])
    assert pack(h.space).size > values.size
    np.testing.assert_allclose(top_eigenpairs(h, 2, key=KEY).values, [5.0, 3.0], rtol=1e-5)
    bottom = bottom_eigenpairs(h, 1, key=KEY, max_products=60)
    np.testing.assert_allclose(bottom.values, [0.5], rtol=1e-5)
    assert bottom.vectors["w"].shape == (1, values.size)
    density = spectral_density(h, key=KEY, probes=2, steps=12)
    assert density.nodes.min() > 0.49
    assert density.parameters == values.size


def test_vectors_that_are_spread_over_a_mesh_stay_trees():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    place = lambda spec: {"w": jax.device_put(jnp.zeros(SIZE), jax.sharding.NamedSharding(mesh, spec))}  # noqa: E731
    batch = [jnp.eye(SIZE)]
    assert packable(hessian(quadratic, place(P()), None, batch))
    spread = hessian(quadratic, place(P("data")), None, batch)
    assert not packable(spread)
    assert spread.space["w"].sharding.spec == P("data")
    assert not jax.jit(lambda w: jnp.asarray(packable(hessian(quadratic, {"w": w}, None, batch))))(jnp.zeros(SIZE))


@pytest.mark.parametrize("rows", [1, 8, 9, 11, 20])
def test_only_the_first_vectors_of_a_basis_are_removed(rows: int):
    rng = np.random.default_rng(rows)
    b, c, v = (rng.normal(size=shape).astype(np.float32) for shape in ((rows, 5), (rows,), (5,)))
    remove = jax.jit(without)
    for count in {0, 1, rows // 2, rows - 1, rows}:
        found = remove({"w": b}, c, {"w": v}, count)["w"]
        np.testing.assert_allclose(found, v - c[:count] @ b[:count], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("k", "basis", "message"), [(0, None, "choose k"), (65, None, "choose k"), (3, 3, "larger than")]
)
def test_what_does_not_fit_is_refused(matrix: np.ndarray, k: int, basis: int | None, message: str):
    with pytest.raises(ValueError, match=message):
        top_eigenpairs(operator(matrix.astype(np.float32)), k, key=KEY, basis=basis)
