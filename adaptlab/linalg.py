"""Decompositions of many matrices; on a CPU one after the other.

XLA's CPU backend spreads a batch of decompositions over the very threads on which programs run, and waits for them
there. As soon as as many batches are under way as there are threads (several arrays in one program, or one array on
several devices, on a machine of two cores) each waits for a thread that another holds, for ever (jaxlib 0.10.2). So
here no batch ever reaches it, not even one that `jax.vmap` makes.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap

__all__ = ["eigh", "qr", "singular_values", "svd"]


def svd(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return U `[*L, D, R]`, s `[*L, R]` descending, Vᵀ `[*L, R, F]` of x `[*L, D, F]`, R = min(D, F)."""
    return _each(functools.partial(jnp.linalg.svd, full_matrices=False), x)


def singular_values(x: jax.Array) -> jax.Array:
    """Return the singular values `[*L, R]` of x `[*L, D, F]`, descending."""
    return _each(functools.partial(jnp.linalg.svd, compute_uv=False), x)


def qr(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return Q `[*L, D, R]` and R `[*L, R, F]` of x `[*L, D, F]`."""
    return _each(lambda x: tuple(jnp.linalg.qr(x)), x)


def eigh(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the eigenvalues `[*L, M]`, ascending, and eigenvectors `[*L, M, M]` of symmetric x `[*L, M, M]`."""
    return _each(lambda x: tuple(jnp.linalg.eigh(x)), x)


def _each(f: Callable[[jax.Array], Any], x: jax.Array) -> Any:
    if jax.default_backend() != "cpu":
        return f(x)
    one = sequential_vmap(f)
    for _ in range(x.ndim - 2):
        one = jax.vmap(one)
    return one(x)
