"""How updates lie to weights, on matrices made to have the answer, in float64."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab.measure.update import Factors, dense_update, singular_vectors
from adaptlab.measure.update_relation import (
    count_intruders,
    largest_cosine,
    leading,
    relation,
    subspace_similarity,
)
from tests.measure.test_update import D, F, L, normal, orthonormal


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def test_size_and_angle_are_their_definitions():
    w, update = normal(0, L, D, F), 0.3 * normal(1, L, D, F)
    found = relation(w, update)
    for i in range(L):
        before, change = np.asarray(w[i]).ravel(), np.asarray(update[i]).ravel()
        after = before + change
        cosine = before @ after / np.linalg.norm(before) / np.linalg.norm(after)
        assert float(found.relative_norm[i]) == pytest.approx(np.linalg.norm(change) / np.linalg.norm(before))
        assert float(found.cosine[i]) == pytest.approx(cosine)
        assert float(found.angle[i]) == pytest.approx(np.degrees(np.arccos(cosine)))


def test_factors_have_the_relation_of_their_product():
    w, factors = normal(0, L, D, F), Factors(normal(1, L, D, 2), normal(2, L, 2, F))
    for a, b in zip(relation(w, factors), relation(w, dense_update(factors)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


def test_an_update_along_the_weight_does_not_turn_it_and_one_across_turns_it():
    w = jnp.eye(3)
    across = jnp.asarray(np.array([[0.0, 1, 0], [0, 0, 1], [1, 0, 0]]))
    assert float(relation(w, 0.5 * w).angle) == pytest.approx(0.0, abs=1e-6)
    assert float(relation(w, -2.0 * w).angle) == pytest.approx(180.0)
    assert float(relation(w, across).angle) == pytest.approx(45.0)


def test_the_angle_of_a_tiny_update_keeps_its_digits_in_float32():
    w = jnp.eye(3, dtype=jnp.float32)
    across = jnp.zeros((3, 3), jnp.float32).at[0, 1].set(1e-6)
    assert float(relation(w, across).angle) == pytest.approx(np.degrees(1e-6 / np.sqrt(3)), rel=1e-5)


def test_no_update_has_no_size_and_no_angle():
    found = relation(normal(0, D, F), jnp.zeros((D, F)))
    assert (float(found.relative_norm), float(found.cosine), float(found.angle)) == (0.0, 1.0, 0.0)


def test_similarity_of_subspaces_is_one_within_and_zero_across():
    basis = jnp.asarray(orthonormal(0, 6, 6))
    same = subspace_similarity(basis[:, :3], basis[:, :3])
    np.testing.assert_allclose(same, 1.0, atol=1e-12)
    np.testing.assert_allclose(subspace_similarity(basis[:, :3], basis[:, 3:]), 0.0, atol=1e-12)


def test_similarity_of_subspaces_is_its_equation_and_ignores_the_basis():
    u, v = orthonormal(0, 8, 4), orthonormal(1, 8, 3)
    turned = u @ orthonormal(2, 4, 4)
    grid = subspace_similarity(jnp.asarray(u), jnp.asarray(v))
    for i, j in ((1, 1), (2, 3), (4, 2)):
        wanted = np.linalg.norm(u[:, :i].T @ v[:, :j]) ** 2 / min(i, j)
        assert float(grid[i - 1, j - 1]) == pytest.approx(wanted)
    again = subspace_similarity(jnp.asarray(turned), jnp.asarray(v))
    np.testing.assert_allclose(again[-1], grid[-1], atol=1e-12)


def test_random_subspaces_are_similar_by_chance():
    found = [
        subspace_similarity(jnp.asarray(orthonormal(i, 20, 3)), jnp.asarray(orthonormal(i + 99, 20, 5)))
        for i in range(60)
    ]
    assert float(np.mean([grid[-1, -1] for grid in found])) == pytest.approx(5 / 20, rel=0.1)


def similarity_to_base(w: jax.Array, update: jax.Array, k: int) -> jax.Array:
    """c of the k leading singular vectors."""
    before, after = (jnp.linalg.svd(x, full_matrices=False)[2] for x in (w, w + update))
    return largest_cosine(after[:k], before)


def planted() -> tuple[jax.Array, np.ndarray, np.ndarray]:
    """W with singular values 5, 4, 3, 2 that leaves directions of its output space free, and its bases."""
    u, v = orthonormal(0, 9, 9), orthonormal(1, 8, 8)
    return jnp.asarray(u[:, :4] * np.array([5.0, 4, 3, 2]) @ v[:, :4].T), u, v


def test_a_large_new_direction_is_an_intruder_and_a_scaled_old_one_is_not():
    w, u, v = planted()
    tall = w[:, :]  # 9 x 8: its thin decomposition spans all outputs, so the free ones are compared too
    old = jnp.asarray(3.0 * np.outer(u[:, 0], v[:, 0]))
    mixed = (v[:, 0] + v[:, 1] + v[:, 2] + v[:, 3]) / 2
    new = jnp.asarray(50.0 * np.outer(u[:, 5], mixed))
    np.testing.assert_allclose(similarity_to_base(tall, old, 4), 1.0, atol=1e-9)
    similarity = similarity_to_base(tall, new, 4)
    assert float(similarity[0]) == pytest.approx(0.5, abs=0.02)  # an even mixture of four old directions
    assert [int(count_intruders(similarity, e)) for e in (0.1, 0.6, 1.01)] == [0, 1, 4]


def test_intruders_are_looked_for_on_the_output_side():
    w, u, v = planted()
    mixed_inputs = jnp.asarray(500.0 * np.outer(u[:, :4].sum(1) / 2, v[:, 0]))
    assert float(similarity_to_base(w, mixed_inputs, 1)[0]) > 0.98
    assert float(similarity_to_base(w.T, mixed_inputs.T, 1)[0]) == pytest.approx(0.5, abs=0.05)


def test_the_leading_part_is_the_nearest_matrix_of_its_rank():
    update = normal(0, L, D, F)
    svd = singular_vectors(update)
    u, s, vt = (np.asarray(x) for x in svd)
    for k in range(F + 1):
        kept = dense_update(jax.jit(leading)(svd, k))
        np.testing.assert_allclose(kept, (u[..., :k] * s[:, None, :k]) @ vt[:, :k], atol=1e-12)
        rest = np.linalg.norm(np.asarray(update) - np.asarray(kept), axis=(1, 2))
        np.testing.assert_allclose(rest, np.sqrt((s[:, k:] ** 2).sum(1)), atol=1e-12)
