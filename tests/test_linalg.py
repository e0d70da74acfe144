"""Decompositions of stacks of matrices."""

import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from adaptlab import linalg

X = np.random.default_rng(0).normal(size=(2, 3, 5, 4)).astype(np.float32)


def test_a_stack_is_decomposed_matrix_by_matrix():
    u, s, vt = linalg.svd(X)
    np.testing.assert_allclose(u @ (s[..., None] * vt), X, atol=1e-5)
    np.testing.assert_allclose(s, np.linalg.svd(X, compute_uv=False), rtol=1e-5)
    np.testing.assert_allclose(linalg.singular_values(X), s, rtol=1e-5)
    q, r = linalg.qr(X)
    np.testing.assert_allclose(q @ r, X, atol=1e-5)
    square = X.swapaxes(-1, -2) @ X
    values, vectors = linalg.eigh(square)
    np.testing.assert_allclose(square @ vectors, vectors * values[..., None, :], atol=1e-4)


def test_batching_gives_a_loop_and_no_batch_of_decompositions():
    text = jax.jit(jax.vmap(linalg.svd)).lower(X).as_text()
    assert "tensor<5x4xf32>" in text.split("lapack_sgesdd_ffi", 1)[1].splitlines()[0]


@pytest.mark.slow
def test_many_stacks_in_one_program_on_as_many_devices_as_cores_come_to_an_end():
    code = (
        "import jax, numpy as np; from adaptlab import linalg; from jax.sharding import *\n"
        "mesh = jax.make_mesh((2,), ('x',), axis_types=(AxisType.Auto,))\n"
        "x = np.random.default_rng(0).normal(size=(4, 128, 192)).astype('f')\n"
        "xs = jax.device_put([x] * 8, NamedSharding(mesh, PartitionSpec()))\n"
        "for _ in range(20): jax.block_until_ready(jax.jit(lambda xs: [linalg.svd(x) for x in xs])(xs))\n"
    )
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    subprocess.run([sys.executable, "-c", code], env=os.environ | flags, check=True, timeout=300)
