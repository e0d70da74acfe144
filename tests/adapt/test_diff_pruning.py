from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf, tree
from adaptlab.adapt import diff_pruning, expected_l0, l0, lora, magnitude_pruned, materialize
from tests.laws.table import scattered

BASE = scattered({"layers": {"q": {"kernel": jnp.zeros((2, 6, 4))}, "norm": {"scale": jnp.zeros((2, 6))}}}, 0)
KEY = jax.random.key(0)


def delta_of(adaptation: Any, seed: int = 1) -> Any:
    return scattered(adaptation.init(KEY, BASE), seed, scale=1.0)


def z(log_alpha: Any) -> np.ndarray:
    return np.clip(3.0 / (1.0 + np.exp(-np.asarray(log_alpha, np.float64))) - 1.5, 0, 1)


@pytest.mark.parametrize(
    ("structure", "kernel_gates", "scale_gates"),
    [("none", None, None), ("matrix", (2, 1, 1), (2, 1)), ("output", (2, 1, 4), (2, 1))],
)
def test_the_change_is_w_times_its_gates(structure: Any, kernel_gates: Any, scale_gates: Any):
    adaptation = diff_pruning(structure=structure, log_alpha=0.3)
    delta = delta_of(adaptation)
    bound = adaptation.bind(BASE, delta)
    for path, shape in (("q/kernel", kernel_gates), ("norm/scale", scale_gates)):
        name, kind = path.split("/")
        own = delta["layers"][name][kind]
        assert (own["group"].shape if "group" in own else None) == shape
        wanted = z(own["gate"]) * np.asarray(own["w"]) * (z(own["group"]) if shape else 1)
        change = bound["layers"][name][kind] - BASE["layers"][name][kind]
        np.testing.assert_allclose(change, wanted, atol=1e-6)


def test_drawn_gates_are_closed_as_often_as_the_expected_l0_says():
    adaptation = diff_pruning("layers/q/kernel", structure="output")
    delta = jax.tree.map(jnp.ones_like, adaptation.init(KEY, BASE))
    delta["layers"]["q"]["kernel"]["gate"] = jnp.full((2, 6, 4), -0.4)
    assert adaptation.sample is not None

    def changed(key: Any) -> jax.Array:
        assert adaptation.sample is not None
        bound = adaptation.sample(BASE, delta, key)
        return jnp.sum(bound["layers"]["q"]["kernel"] != BASE["layers"]["q"]["kernel"])

    counts = jax.vmap(changed)(jax.random.split(KEY, 2000)).astype(jnp.float32)
    error = 4 * np.std(counts) / np.sqrt(len(counts))
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    assert abs(float(expected_l0(delta)) - 48 * sigmoid(-0.4) * sigmoid(1.0)) < 1e-3
    assert abs(float(jnp.mean(counts)) - float(expected_l0(delta))) < error


def test_the_penalty_closes_gates_and_leaves_w_alone():
    adaptation = diff_pruning(structure="matrix")
    delta = delta_of(adaptation)
    gradient = tree.flatten(jax.grad(lambda d: l0(strength=0.1)(d, BASE))(delta))
    for path, g in gradient.items():
        assert np.all(g == 0) if path.endswith("/w") else np.all(g > 0), path


def test_a_delta_without_gates_has_no_expected_l0():
    with pytest.raises(ValueError, match="this delta has none; it is for diff_pruning"):
        expected_l0(lora(1, select="layers/q/kernel").init(KEY, BASE))


@pytest.mark.parametrize("structure", ["none", "matrix"])
def test_pruning_keeps_the_largest_changes_of_all_and_nothing_else(structure: Any):
    adaptation = diff_pruning(structure=structure, log_alpha=0.5)
    delta = delta_of(adaptation)
    flat = [tree.flatten(adaptation.bind(BASE, d)) for d in (delta, magnitude_pruned(delta, 0.25))]
    before, after = (np.concatenate([np.ravel(f[p] - x) for p, x in tree.flatten(BASE).items()]) for f in flat)
    kept = np.argsort(-np.abs(before))[:15]  # a quarter of 2 · (6 · 4 + 6)
    assert set(np.flatnonzero(np.abs(after) > 1e-6)) == set(kept)
    np.testing.assert_allclose(after[kept], before[kept], atol=1e-6)


@pytest.mark.parametrize("density", [0.0, 1.5])
def test_a_density_is_a_share(density: float):
    with pytest.raises(ValueError, match="is not above 0 and at most 1"):
        magnitude_pruned(delta_of(diff_pruning()), density)


def test_over_a_node_the_sum_is_not_formed_and_still_right():
    below = lora(2, select="layers/q/kernel")
    bound = below.bind(BASE, scattered(below.init(KEY, BASE), 2))
    adaptation = diff_pruning("layers/q/kernel")
    delta = scattered(adaptation.init(KEY, bound), 3)
    got = adaptation.bind(bound, delta)["layers"]["q"]["kernel"]
    assert isinstance(got, leaf.Added)
    wanted = materialize(adaptation.bind(materialize(bound), delta))["layers"]["q"]["kernel"]
    np.testing.assert_allclose(leaf.dense(got), wanted, rtol=1e-5, atol=1e-6)
    one, x = jax.tree.map(lambda a: a[0], got), jnp.ones((3, 6))
    np.testing.assert_allclose(leaf.dot(x, one), x @ wanted[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(
        leaf.take(one, jnp.array([1, 4]), jnp.float32), wanted[0][jnp.array([1, 4])], rtol=1e-5, atol=1e-6
    )


def test_an_unknown_structure_is_an_error():
    make: Any = diff_pruning
    with pytest.raises(ValueError, match=r"structure='rows' is not one of \['none', 'matrix', 'output'\]"):
        getattr(make, "__wrapped__", make)(structure="rows")
