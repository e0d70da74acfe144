"""Where updates lie, planted."""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab.measure.update import Factors, Svd
from adaptlab.measure.update_subspaces import leading_vectors, subspaces
from tests.measure.test_update import orthonormal

N, M, K = 24, 20, 4
U, V = orthonormal(0, N, N), orthonormal(1, M, M)
S = np.linspace(5, 1, M)


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def matrix(inputs: list[int], outputs: list[int], s: list[float]) -> jax.Array:
    return jnp.asarray(U[:, inputs] * np.array(s) @ V[:, outputs].T)


def compared(update: jax.Array | Factors, gradient: np.ndarray, k: int = K) -> dict[str, float]:
    w = jnp.asarray(U[:, :M] * S @ V.T)
    found = subspaces(w, update, leading_vectors(w), leading_vectors(jnp.asarray(gradient), k), k, (0.5, 1.0))
    return {name: float(value) for name, value in found.items()}


GRADIENT = U[:, 2:6] * np.array([4.0, 3, 2, 1]) @ V[:, 10:14].T


def test_an_update_of_the_bases_leading_directions_overlaps_with_it_and_not_with_a_gradient_elsewhere():
    found = compared(matrix([0, 1], [0, 1], [0.1, 0.05]), GRADIENT)
    assert found["base_overlap_input"] == pytest.approx(1)
    assert found["base_overlap_output"] == pytest.approx(1)
    assert found["gradient_overlap_input"] == pytest.approx(0, abs=1e-9)
    assert found["gradient_overlap_output"] == pytest.approx(0, abs=1e-9)
    assert found["intruders_0.5"] == 0


def test_sides_are_told_apart():
    found = compared(matrix([2, 3, 18, 19], [0, 1, 2, 3], [0.4, 0.3, 0.2, 0.1]), GRADIENT)
    assert found["base_overlap_input"] == pytest.approx(0.5)
    assert found["base_overlap_output"] == pytest.approx(1)
    assert found["gradient_overlap_input"] == pytest.approx(0.5)
    assert found["gradient_overlap_output"] == pytest.approx(0, abs=1e-9)


def test_vectors_beyond_the_rank_of_the_update_do_not_count():
    one = matrix([0], [0], [1.0])
    factors = Factors(jnp.pad(one[:, :1], ((0, 0), (0, 5))), jnp.pad(one[:1] / one[0, 0], ((0, 5), (0, 0))))
    for update in (one, factors):
        assert compared(update, GRADIENT)["base_overlap_input"] == pytest.approx(1)


def test_a_strong_even_mixture_is_an_intruder():
    mixture = jnp.asarray(1e3 * np.outer(U[:, 0], V[:, :16].sum(1) / 4))
    assert compared(mixture, GRADIENT)["intruders_0.5"] == 1
    assert compared(1e-9 * mixture, GRADIENT)["intruders_0.5"] == 0


def test_chance_is_what_random_subspaces_have():
    draws = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        draws.append(compared(jnp.asarray(rng.normal(size=(N, M))), rng.normal(size=(N, M))))
    for name in ("base", "gradient"):
        for side in ("input", "output"):
            mean = np.mean([found[f"{name}_overlap_{side}"] for found in draws])
            assert mean == pytest.approx(draws[0][f"chance_{side}"], rel=0.15)


def test_stacks_are_compared_layer_by_layer():
    w = jnp.asarray(np.stack([U[:, :M] * S @ V.T] * 2))
    updates = [matrix([0], [0], [1.0]), matrix([0, 9], [0, 9], [1.0, 0.5])]
    gradient = leading_vectors(jnp.asarray(np.stack([GRADIENT] * 2)), K)
    stacked = subspaces(w, jnp.stack(updates), leading_vectors(w), gradient, K, (0.5,))
    for i, update in enumerate(updates):
        alone = compared(update, GRADIENT)
        for name, values in stacked.items():
            assert float(values[i]) == pytest.approx(alone[name], abs=1e-9), name


def test_leading_vectors_are_the_first():
    svd = leading_vectors(jnp.asarray(GRADIENT), 2)
    assert isinstance(svd, Svd)
    np.testing.assert_allclose(svd.s, [4.0, 3.0], atol=1e-12)
    np.testing.assert_allclose(np.abs(svd.vt @ V[:, [10, 11]]), np.eye(2), atol=1e-12)
