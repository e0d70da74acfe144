from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf, tree
from adaptlab.adapt import count_trained, materialize, random_subspace
from adaptlab.leaf import Projected, fastfood
from tests.laws.table import scattered

BASE = scattered(
    {
        "layers": {"q": {"kernel": jnp.zeros((3, 20, 30))}, "k": {"kernel": jnp.zeros((3, 20, 10))}},
        "head": {"kernel": jnp.zeros((20, 16))},
    },
    0,
)
EVERY = ["layers/.*/kernel", "head/kernel"]
KEY = jax.random.key(0)


def projection(adaptation: Any, base: Any = BASE) -> np.ndarray:
    """P `[N, dim]`: where the whole model moves with each element of z."""
    start = adaptation.init(KEY, base)

    def moved(z: jax.Array) -> jax.Array:
        delta = {"subspace": start["subspace"] | {"z": z}}
        return jnp.concatenate([x.ravel() for x in jax.tree.leaves(materialize(adaptation.bind(base, delta)))])

    return np.asarray(jax.jit(jax.jacfwd(moved))(start["subspace"]["z"]), np.float64)


def test_the_columns_have_length_one_and_are_nearly_orthogonal():
    gram = projection(random_subspace(12, select=EVERY)).T
    gram = gram @ gram.T
    n = 3 * 20 * 40 + 320
    np.testing.assert_allclose(np.diag(gram), 1.0, atol=5 * (2 / n * 16) ** 0.5)
    assert np.abs(gram - np.diag(np.diag(gram))).max() < 5 * (16 / n) ** 0.5


def test_the_length_does_not_depend_on_the_dimension_nor_on_what_is_selected():
    for dim, select in ((100, EVERY), (3, EVERY), (12, "head/kernel")):
        lengths = np.linalg.norm(projection(random_subspace(dim, select=select)), axis=0)
        assert 0.8 < np.mean(lengths) < 1.2


def test_layers_and_matrices_move_apart():
    p = projection(random_subspace(12, select="layers/q/kernel")).reshape(-1, 12)
    head, k, q = np.split(p, [320, 320 + 600])  # in the order of the tree
    assert not np.any(head)
    assert not np.any(k)
    first, second = q.reshape(3, 600, 12)[:2]
    assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.06


def test_the_projection_is_the_configs_and_not_the_runs():
    one, same, other = (projection(random_subspace(5, projection_seed=seed)) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert np.abs(one - other).max() > 0.01


def test_an_effective_dimension_moves_in_the_first_directions_only():
    whole, few = projection(random_subspace(6)), projection(random_subspace(6, effective_dim=2.0))
    np.testing.assert_array_equal(few[:, :2], whole[:, :2])
    assert not np.any(few[:, 2:])


def test_what_trains_is_the_effective_dimension():
    for effective, wanted in ((None, 12), (5.0, 5), (40.0, 12)):
        adaptation = random_subspace(12, effective_dim=effective, select=EVERY)
        assert count_trained(adaptation, BASE, adaptation.init(KEY, BASE)) == wanted


def test_a_scale_for_every_layer_scales_its_matrices():
    adaptation = random_subspace(10, select=EVERY, structure_aware=True)
    delta = adaptation.init(KEY, BASE)["subspace"]
    assert {name: x.shape for name, x in delta.items()} == {"z": (6,), "layer_scale": (4,)}
    flat = tree.flatten(BASE)

    @jax.jit
    def change(scale: jax.Array) -> dict[str, Any]:
        merged = materialize(adaptation.bind(BASE, {"subspace": {"z": jnp.ones(6), "layer_scale": scale}}))
        return {path: x - flat[path] for path, x in tree.flatten(merged).items()}

    plain, scaled = change(jnp.ones(4)), change(jnp.asarray([1.0, 3.0, 0.0, -1.0]))
    for name in "qk":
        wanted = plain[f"layers/{name}/kernel"] * np.array([1.0, 3.0, 0.0])[:, None, None]
        np.testing.assert_allclose(scaled[f"layers/{name}/kernel"], wanted, atol=1e-5)
    np.testing.assert_allclose(scaled["head/kernel"], -plain["head/kernel"], atol=1e-5)


def test_a_fastfood_block_mixes_every_element_into_every_other():
    p = np.asarray(jax.jacfwd(lambda z: fastfood(z, jnp.uint32(3), 64))(jnp.zeros(64)), np.float64)
    values = np.linalg.svd(p, compute_uv=False)
    assert np.mean(p == 0) < 0.01
    assert np.linalg.matrix_rank(p) == 64
    np.testing.assert_allclose(np.mean(values**2), 1.0, atol=0.5)


@pytest.mark.parametrize("size", [2, 4, 16, 64, 1024])
def test_the_permutation_is_one(size: int):
    from adaptlab.leaf.subspace import _permuted

    place = jnp.broadcast_to(jnp.arange(size, dtype=jnp.uint32), (3, size))
    key = jnp.asarray([[1], [2**31 + 5], [12345]], jnp.uint32) + jnp.zeros_like(place)
    found = np.sort(np.asarray(_permuted(place, key, size)), axis=1)
    np.testing.assert_array_equal(found, np.broadcast_to(np.arange(size), (3, size)))


def test_a_node_is_read_as_the_array_it_stands_for():
    node = Projected(
        BASE["head"]["kernel"],
        jnp.asarray(np.random.default_rng(0).normal(size=5), jnp.float32),
        jnp.uint32(7),
        jnp.float32(2.0),
    )
    x, y = (jnp.asarray(np.random.default_rng(1).normal(size=(3, n)), jnp.float32) for n in (20, 16))
    ids = jnp.asarray([1, 19])

    @jax.jit
    def read(node: Any) -> list[jax.Array]:
        product, transposed = leaf.dot(x, node), leaf.dot(y, node, transpose=True)
        return [leaf.dense(node), product, transposed, leaf.take(node, ids, jnp.float32)]

    dense, product, transposed, rows = read(node)
    np.testing.assert_allclose(product, x @ dense, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(transposed, y @ dense.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(rows, dense[ids], rtol=1e-4, atol=1e-5)


def test_no_matrix_of_the_weights_size_is_kept_for_the_backward_pass():
    node = random_subspace(12, select="head/kernel")
    base, start = BASE["head"], {"subspace": {"z": jnp.ones(12)}}
    x = jnp.ones((2, 20))

    def loss(delta: Any) -> jax.Array:
        return jnp.sum(leaf.dot(x, node.bind({"head": base}, delta)["head"]["kernel"]) ** 2)

    kept = jax.tree.leaves(jax.vjp(loss, start)[1])
    assert kept
    assert all(np.size(array) < 20 * 16 for array in kept)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 0}, "dim=0 must be at least 1"),
        ({"dim": 3, "structure_aware": True}, "dim=3 is taken up by the scales of 3 layers"),
    ],
    ids=str,
)
def test_too_few_dimensions_are_an_error(options: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        random_subspace(**options).init(KEY, BASE)
