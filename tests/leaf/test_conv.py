from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf
from adaptlab.leaf import LowRank, LowRankConv

OPTIONS: list[dict[str, Any]] = [
    {},
    {"strides": (2, 1)},
    {"padding": "VALID", "dilation": (2, 1)},
    {"padding": [(1, 0), (2, 1)]},
]
CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-4}


def normal(seed: int, *shape: int) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


W = normal(0, 3, 2, 4, 5)
NODE = LowRankConv(W, normal(1, 3, 2, 4, 2), normal(2, 2, 5), jnp.asarray(1.5))


def by_hand(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """The sum over taps and channels, at every place where the kernel fits."""
    h, v = w.shape[:2]
    places = [(i, j) for i in range(x.shape[1] - h + 1) for j in range(x.shape[2] - v + 1)]
    y = [np.einsum("bhwc,hwco->bo", x[:, i : i + h, j : j + v], w) for i, j in places]
    return np.stack(y, axis=1).reshape(len(x), x.shape[1] - h + 1, x.shape[2] - v + 1, -1)


def test_it_is_the_sum_over_taps_and_channels():
    x = normal(3, 2, 6, 5, 4)
    np.testing.assert_allclose(leaf.conv(x, W, padding="VALID"), by_hand(np.asarray(x), np.asarray(W)), **CLOSE)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("node", [NODE, LowRankConv(NODE, NODE.a * 2, NODE.b, NODE.scale)], ids=["once", "twice"])
def test_a_node_convolves_as_the_kernel_it_stands_for(node: LowRankConv, options: dict[str, Any]):
    x = normal(3, 2, 6, 5, 4)
    np.testing.assert_allclose(leaf.conv(x, node, **options), leaf.conv(x, leaf.dense(node), **options), **CLOSE)


def test_a_node_for_matrices_is_densified():
    w = normal(0, 1, 1, 4, 5)
    node = LowRank(w, normal(1, 1, 1, 4, 2), normal(2, 1, 1, 2, 5), jnp.ones((1, 1)))
    x = normal(3, 2, 6, 5, 4)
    np.testing.assert_allclose(leaf.conv(x, node), x @ leaf.dense(node)[0, 0], **CLOSE)


def test_leading_axes_are_batch_axes():
    stack = jax.tree.map(lambda x: jnp.stack([x, 2 * x, -x]), NODE)
    x = normal(3, 2, 6, 5, 4)
    _, scanned = jax.lax.scan(lambda carry, layer: (carry, leaf.conv(x, layer)), 0, stack)
    for i, w in enumerate(leaf.dense(stack)):
        np.testing.assert_allclose(scanned[i], leaf.conv(x, w), **CLOSE)


def test_the_kernel_of_the_sum_is_never_formed():
    text = str(jax.make_jaxpr(lambda n, x: leaf.conv(x, n))(NODE, normal(3, 2, 6, 5, 4)))
    assert "f32[3,2,4,5] = add" not in text


def test_the_compute_type_is_that_of_the_input():
    assert leaf.conv(normal(3, 2, 6, 5, 4).astype(jnp.bfloat16), NODE).dtype == jnp.bfloat16


def test_it_is_no_matrix():
    with pytest.raises(TypeError, match=r"read it by leaf\.conv"):
        leaf.dot(normal(0, 2, 4), NODE)
