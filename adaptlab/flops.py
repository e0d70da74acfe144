"""Floating-point operations of a function, counted in its jaxpr: exact for loops, whatever the backend.

Convention: a matrix product of M × K by K × N is 2 M K N; element-wise operations and reductions are not counted.
(XLA's own cost analysis counts the body of a scan once, whatever its length.)
"""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core

__all__ = ["count_flops"]


def count_flops(f: Callable[..., Any], *args: Any) -> int:
    """Return the matrix-product FLOPs of one call of `f`; the arguments may be abstract.

    Conditionals count their most expensive branch.

    Raises:
      ValueError: the function has a loop whose length is not known before it runs.

    >>> import jax.numpy as jnp
    >>> count_flops(jnp.matmul, jnp.ones((2, 3)), jnp.ones((3, 5)))
    60
    """
    return _count(jax.make_jaxpr(f)(*args).jaxpr)


def _count(jaxpr: Any) -> int:
    return sum(_equation(equation) for equation in jaxpr.eqns)


def _equation(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        return _dot_general(equation)
    if name == "while":
        raise ValueError("count_flops: a while loop has no known length; write it as a scan.")
    if name == "cond":
        return max(_count(branch.jaxpr) for branch in params["branches"])
    if name == "conv_general_dilated":
        raise ValueError("count_flops: convolutions are not counted yet.")
    times = params["length"] if name == "scan" else 1
    return times * sum(_count(inner) for value in params.values() for inner in _inner(value))


def _inner(value: Any) -> list[Any]:
    if isinstance(value, core.ClosedJaxpr):
        return [value.jaxpr]
    return [value] if isinstance(value, core.Jaxpr) else []


def _dot_general(equation: Any) -> int:
    (contract, _), _ = equation.params["dimension_numbers"]
    lhs = equation.invars[0].aval.shape
    return 2 * math.prod(lhs[axis] for axis in contract) * math.prod(equation.outvars[0].aval.shape)
