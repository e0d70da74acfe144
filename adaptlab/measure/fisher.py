"""The diagonal of the empirical Fisher information, streamed over batches."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["fisher_diagonal", "squared_batch_gradients"]

Loss = Callable[[Any, Any, jax.Array], Any]
"""`(params, batch, key) -> Mean`: the summed loss and its weight, as training has it."""


def fisher_diagonal(loss: Loss, params: Any, batches: Iterable[Any], key: jax.Array, *, chunk: int = 4) -> Any:
    """F_j = 1/N Σ_i (∂ log p(y_i | x_i) / ∂θ_j)², over N examples (arXiv:2111.09839).

    The labels are those of the data, which makes it the empirical Fisher, not the Fisher of the model's own
    predictions. An example is a row of a batch: its log-likelihood is the sum over its targets. Rows without any
    target (padding) are not counted.

    Args:
      loss: `(params, batch, key) -> Mean`, a negative log-likelihood.
      params: arrays or nodes whose float leaves are differentiated.
      batches: pytrees with a leading row axis, all of one shape.
      key: folded with the batch's and the row's number, for losses that draw.
      chunk: rows differentiated at a time; memory is that of so many gradients.

    Returns:
      A float32 tree like params.
    """

    def one(params: Any, row: Any, key: jax.Array) -> Any:
        def total(params: Any) -> tuple[Any, Any]:
            mean = loss(params, jax.tree.map(lambda x: x[None], row), key)
            return mean.sum, mean.weight

        gradient, weight = jax.grad(total, has_aux=True)(params)
        counted = (weight > 0).astype(jnp.float32)
        return jax.tree.map(lambda g: counted * jnp.square(g.astype(jnp.float32)), gradient), counted

    def of(params: Any, batch: Any, key: jax.Array) -> Any:
        rows = jax.tree.leaves(batch)[0].shape[0]

        def add(carry: Any, part: Any) -> tuple[Any, None]:
            some, keys = part
            squares = jax.vmap(one, in_axes=(None, 0, 0))(params, some, keys)
            return jax.tree.map(lambda total, x: total + jnp.sum(x, axis=0), carry, squares), None

        if rows % size(rows):
            raise ValueError(f"chunk={chunk} does not divide the {rows} rows of a batch.")
        cut = jax.tree.map(lambda x: x.reshape(-1, size(rows), *x.shape[1:]), (batch, jax.random.split(key, rows)))
        zero = (jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params), jnp.zeros(()))
        return jax.lax.scan(add, zero, cut)[0]

    def size(rows: int) -> int:
        return min(chunk, rows)

    return _mean(of, params, batches, key)


def squared_batch_gradients(loss: Loss, params: Any, batches: Iterable[Any], key: jax.Array) -> Any:
    """The mean over batches of the squared gradient of a batch's mean loss: one gradient per batch.

    It costs as much as training on the batches. It is not the Fisher information: with B rows in a batch, its mean is
    1/B of the per-row variance of the gradient plus the square of the mean gradient.

    Args and result are those of `fisher_diagonal`.
    """

    def of(params: Any, batch: Any, key: jax.Array) -> Any:
        gradient = jax.grad(lambda p: loss(p, batch, key).value)(params)
        return jax.tree.map(lambda g: jnp.square(g.astype(jnp.float32)), gradient), jnp.ones(())

    return _mean(of, params, batches, key)


def _mean(of: Callable[..., Any], params: Any, batches: Iterable[Any], key: jax.Array) -> Any:
    """Return Σ of(batch)[0] / Σ of(batch)[1], one program for all batches."""

    @jax.jit
    def add(total: Any, params: Any, batch: Any, key: jax.Array) -> Any:
        return jax.tree.map(jnp.add, total, of(params, batch, key))

    total = (jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), params), jnp.zeros(()))
    for i, batch in enumerate(batches):
        total = add(total, params, batch, jax.random.fold_in(key, i))
    squares, count = total
    if not float(count):
        raise ValueError("There are no batches, or none with a target, to take the Fisher information from.")
    return jax.tree.map(lambda x: x / count, squares)
