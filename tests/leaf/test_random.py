import jax.numpy as jnp
import numpy as np

from adaptlab.leaf.random import hashed, normal_at, scrambled, signs_at, uniform_at, uniform_matrix

BITS = np.asarray(hashed(3, jnp.arange(200_000, dtype=jnp.uint32)))


GOLDEN = [982564066, 2808950145, 2867550]


def by_hand(x: int) -> int:
    """The hash in Python's own integers."""
    x = (x ^ x >> 16) * 0x7FEB352D % 2**32
    x = (x ^ x >> 15) * 0x846CA68B % 2**32
    return x ^ x >> 16


def test_the_bits_are_these_on_every_machine():
    for x in (0, 1, 2**31, 2**32 - 1):
        assert int(scrambled(jnp.uint32(x))) == by_hand(x)
    assert [int(x) for x in hashed(0, jnp.arange(3, dtype=jnp.uint32))] == GOLDEN


def test_every_bit_is_fair_and_no_two_go_together():
    bits = (BITS[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    standard_error = 0.5 / np.sqrt(len(BITS))
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 4.5 * standard_error
    correlation = np.corrcoef(bits.T) - np.eye(32)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(BITS))
    neighbours = np.corrcoef(bits[:-1].T, bits[1:].T)[:32, 32:]
    assert np.abs(neighbours).max() < 5 / np.sqrt(len(BITS))


def test_uniform_normal_and_sign_have_their_moments():
    uniform, normal, sign = (np.asarray(f(jnp.asarray(BITS)), np.float64) for f in (uniform_at, normal_at, signs_at))
    assert uniform.min() > 0
    assert uniform.max() < 1
    root = np.sqrt(len(BITS))
    assert abs(uniform.mean() - 0.5) < 4 * 12**-0.5 / root
    assert abs(normal.mean()) < 4 / root
    assert abs(normal.var() - 1) < 4 * 2**0.5 / root
    assert abs((normal**4).mean() - 3) < 4 * 96**0.5 / root
    assert set(sign) == {-1.0, 1.0}
    assert abs(sign.mean()) < 4 / root


def test_a_smaller_matrix_is_the_corner_of_a_larger_one():
    large, small = uniform_matrix(1, (40, 30), 2.0), uniform_matrix(1, (20, 10), 2.0)
    np.testing.assert_array_equal(large[:20, :10], small)
    assert np.abs(large).max() <= 2.0
    assert np.any(large != uniform_matrix(2, (40, 30), 2.0))


def test_the_singular_values_are_those_of_independent_elements():
    """Marchenko and Pastur's edges: a matrix with hidden structure has values outside them."""
    values = np.linalg.svd(np.asarray(uniform_matrix(7, (400, 100), 3**0.5)), compute_uv=False) / 400**0.5
    assert values.min() > 1 - 0.5 - 0.05
    assert values.max() < 1 + 0.5 + 0.05


def test_rows_and_columns_are_not_alike():
    matrix = np.asarray(uniform_matrix(7, (100, 100), 1.0))
    assert abs(np.corrcoef(matrix.ravel(), matrix.T.ravel())[0, 1]) < 0.07
    across = np.corrcoef(matrix) - np.eye(100)
    assert np.abs(across).max() < 0.5
