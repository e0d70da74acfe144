"""Sharpness as the literature defines it: by worst neighbours, by invariances, and as an optimiser sees it.

λ_max, the trace and the rest of the spectrum are `lambda_max`, `hutchinson_trace`, `spectral_density`; all of them
change when layers are rescaled so that the network's function stays the same (arXiv:1703.04933), which
`adaptive_sharpness` and `relative_flatness` are made to forgive.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import tree
from adaptlab.config import GIVEN, Traced
from adaptlab.measure.curvature.lanczos import bottom_eigenpairs, lambda_max, top_eigenpairs
from adaptlab.measure.curvature.operators import Batches, Operator, at_once, block, stack_batches
from adaptlab.measure.curvature.products import Objective, hessian, objective_key, summed
from adaptlab.measure.curvature.traces import check_probes
from adaptlab.measure.curvature.vectors import draw, wide
from adaptlab.optim.carry import moments
from adaptlab.stats import Estimate, Mean, estimate

__all__ = [
    "adam_preconditioner",
    "adaptive_sharpness",
    "m_sharpness",
    "make_sharpness_probe",
    "negative_curvature",
    "relative_flatness",
]


def m_sharpness(
    objective: Objective,
    theta: Any,
    base: Any,
    batches: Batches | Sequence[Any],
    *,
    rho: Traced = 0.05,
    m: int | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The mean over sets S of m rows of max_{‖ε‖ ≤ ρ} L_S(θ + ε) - L_S(θ) (arXiv:2010.01412, eq. 1 and sec. 4.1).

    The maximum is taken where a linear L_S has it, as SAM does (eq. 2 with p = 2): ε = ρ ∇L_S / ‖∇L_S‖. So this is a
    lower bound of the maximum, and at a point where ∇L_S = 0 it is 0 whatever the curvature.

    Args:
      objective: `(theta, base, batch, key) -> Mean`.
      theta: what trains.
      base: what does not.
      batches: a list of batches, or `stack_batches` of it.
      rho: ρ.
      m: rows in a set; divides those of a batch. None takes whole batches. Sets without a target are not counted.
      key: for an objective that draws.

    Raises:
      ValueError: m does not divide the rows.
    """
    return _ascended(objective, theta, base, _cut(batches, m), objective_key(key), rho, None)


def adaptive_sharpness(
    objective: Objective,
    theta: Any,
    base: Any,
    batches: Batches | Sequence[Any],
    *,
    rho: Traced = 0.5,
    eta: Traced = 0.01,
    m: int | None = None,
    key: jax.Array | None = None,
) -> jax.Array:
    """The mean over sets S of max_{‖T⁻¹ ε‖ ≤ ρ} L_S(θ + ε) - L_S(θ), T = diag(|θ| + η) (arXiv:2102.11600, sec. 3).

    The neighbourhood grows with each weight, so that with η = 0 rescaling weights against each other, where the
    function stays the same, leaves it the same. To first order, the maximum is at ε = ρ T² ∇L_S / ‖T ∇L_S‖ (sec. 4).

    Args:
      objective: `(theta, base, batch, key) -> Mean`.
      theta: what trains. Of LoRA it is A and B, whose product is invariant in the same way; B = 0 at the start.
      base: what does not.
      batches: a list of batches, or `stack_batches` of it.
      rho: ρ.
      eta: η, the paper's for stability; without it, weights of 0 do not move.
      m: as in `m_sharpness`.
      key: for an objective that draws.
    """
    return _ascended(objective, theta, base, _cut(batches, m), objective_key(key), rho, eta)


@functools.partial(jax.jit, static_argnums=0)
def _ascended(objective: Objective, theta: Any, base: Any, data: Batches, key: jax.Array, rho: Any, eta: Any) -> Any:
    scale = None if eta is None else jax.tree.map(lambda x: jnp.abs(x) + jnp.asarray(eta, x.dtype), wide(theta))

    def one(batch: Any, key: jax.Array) -> Mean:
        def loss(theta: Any) -> tuple[Any, Any]:
            mean = objective(theta, base, batch, key)
            return mean.value, mean.weight

        (before, weight), gradient = jax.value_and_grad(loss, has_aux=True)(theta)
        rise = _rise(wide(gradient), scale, rho)
        after, _ = loss(jax.tree.map(lambda x, e: x + e.astype(x.dtype), theta, rise))
        some = jnp.asarray(weight > 0, before.dtype)
        return Mean(jnp.where(weight > 0, after - before, 0), some)

    return summed(one, data, key).value


def _rise(gradient: Any, scale: Any, rho: Any) -> Any:
    """ε, from the gradient and T's diagonal (None: T = I)."""
    stretched = gradient if scale is None else jax.tree.map(jnp.multiply, scale, gradient)
    norm = tree.norm(stretched)
    factor = rho / jnp.where(norm > 0, norm, 1)
    back = stretched if scale is None else jax.tree.map(jnp.multiply, scale, stretched)
    return jax.tree.map(lambda x: factor.astype(x.dtype) * x, back)


def _cut(batches: Batches | Sequence[Any], m: int | None) -> Batches:
    """Sets of m rows as batches of their own."""
    data = stack_batches(batches)
    if m is None:
        return data
    rows = jax.tree.leaves(data.stacked)[0].shape[1]
    if m < 1 or rows % m:
        raise ValueError(f"m={m} does not divide the {rows} rows of a batch.")
    return Batches(jax.tree.map(lambda x: x.reshape(-1, m, *x.shape[2:]), data.stacked))


def relative_flatness(
    operator: Operator,
    theta: Any,
    path: str,
    *,
    key: jax.Array,
    layer: int | None = None,
    probes: int = 32,
    together: int = 1,
) -> Estimate:
    """κ = Σ_{s,s'} ⟨w_s, w_s'⟩ tr H_{s,s'} of one layer (Petzka et al., arXiv:2001.00939, definition 3).

    w_s are the weights into neuron s, W's rows in the paper and the columns of a kernel K here, and H_{s,s'} is the
    block of second derivatives by w_s and w_s'. With Z `[D, D]` of independent ±1, the elements of V = Z K have
    E V_ds V_d's' = δ_dd' ⟨w_s, w_s'⟩, so κ = E ⟨V, H V⟩, which needs no block of H. It is the same for all networks
    that differ by the scale of ReLU layers alone.

    Args:
      operator: the Hessian over full weights.
      theta: the weights.
      path: the kernel's, `[D, F]`.
      key: of the probes.
      layer: which one, of a stack of kernels `[L, D, F]`.
      probes: how many Z, at least 2; a product each.
      together: products at a time.

    Raises:
      ValueError: the path is not that of one matrix.
    """
    check_probes(probes, "rademacher", together)
    flat = tree.flatten(theta)
    shape = flat[path].shape if path in flat else ()
    if len(shape) != (2 if layer is None else 3):
        kernels = {name: x.shape for name, x in flat.items() if x.ndim >= 2}
        raise ValueError(f"{path!r} with layer={layer} is not one matrix; stacks of kernels need a layer: {kernels}.")
    inside = block(operator, path, layer=layer)
    kernel = flat[path] if layer is None else flat[path][layer]
    return estimate(np.asarray(_flatness(inside, kernel, path, key, probes, together), np.float64))


@functools.partial(jax.jit, static_argnums=(2, 4, 5))
def _flatness(operator: Operator, kernel_DF: jax.Array, path: str, key: jax.Array, probes: int, together: int) -> Any:
    product = operator.linearise()
    kernel_DF = wide(kernel_DF)
    square = jnp.zeros((kernel_DF.shape[0],) * 2, kernel_DF.dtype)

    def one(key: jax.Array) -> jax.Array:
        z_DD = draw(key, square, "rademacher")
        v = {path: jnp.matmul(z_DD, kernel_DF, precision=jax.lax.Precision.HIGHEST)}
        return tree.dot(v, product(v))

    return at_once(one, jax.random.split(key, probes), together)


def negative_curvature(operator: Operator, *, key: jax.Array, **settings: Any) -> jax.Array:
    """max(-λ_min, 0) / λ_max: how curved the most descending direction is, beside the sharpest (arXiv:1902.02366).

    Args:
      operator: a Hessian.
      key: see `top_eigenpairs`.
      **settings: see `top_eigenpairs`.
    """
    low = bottom_eigenpairs(operator, 1, key=key, **settings).values[0]
    return jnp.maximum(-low, 0) / lambda_max(operator, key=key, **settings)


def adam_preconditioner(opt_state: Any, theta: Any, *, b1: Any = 0.9, b2: Any = 0.999, eps: Any = 1e-8) -> Any:
    """P = (1 - β₁ᵗ) (√(ν / (1 - β₂ᵗ)) + ε), the diagonal Adam divides by after t updates (arXiv:2207.14484, eq. 3).

    Adam's steps are stable while λ_max of P^(-1/2) H P^(-1/2), see `preconditioned`, is under
    (2 + 2 β₁) / ((1 - β₁) · learning rate): 38 / learning rate at β₁ = 0.9 (their sec. 3).

    Args:
      opt_state: of an optimiser with one Adam in it, after at least one update.
      theta: what trains.
      b1: β₁ of the training, which the state does not hold.
      b2: β₂.
      eps: ε.

    Raises:
      ValueError: the state has no Adam in it.
    """
    found = moments(opt_state, b1=b1, b2=b2)
    if "adam" not in found:
        raise ValueError(f"The optimiser's state holds {sorted(found)}, and Adam's moments are needed.")
    nu, count = tree.flatten(found["adam"]["nu"]), jnp.asarray(found["adam"]["count"], jnp.float32)
    first, second = 1 - jnp.float32(b1) ** count, 1 - jnp.float32(b2) ** count

    def one(path: str, x: jax.Array) -> jax.Array:
        root = jnp.sqrt(nu[path].astype(x.dtype) / second.astype(x.dtype))
        return first.astype(x.dtype) * (root + jnp.asarray(eps, x.dtype))

    return tree.map_with_path(one, wide(theta))


def make_sharpness_probe(
    objective: Annotated[Objective, GIVEN],
    batches: Annotated[Batches | Sequence[Any], GIVEN],
    *,
    key: Annotated[jax.Array, GIVEN],
    k: int = 1,
    **settings: Any,
) -> Callable[[Any, Any], dict[str, float]]:
    """Return `probe(delta, base) -> {"lambda_max", "lambda_2", …, "lambda_max_residual"}`, for use while training.

    All calls share one program, and equal arguments give equal values whatever was probed before.

    Args:
      objective: what training differentiates.
      batches: the batches whose mean loss it is about, of one shape.
      key: of the starting vector, and of an objective that draws.
      k: how many eigenvalues.
      **settings: see `top_eigenpairs`.
    """
    data = stack_batches(batches)

    def probe(delta: Any, base: Any) -> dict[str, float]:
        pairs = top_eigenpairs(hessian(objective, delta, base, data, key=key), k, key=key, **settings)
        values, residuals = np.asarray(pairs.values), np.asarray(pairs.residuals)
        names = ["lambda_max", *(f"lambda_{i}" for i in range(2, k + 1))]
        return dict(zip(names, map(float, values), strict=True)) | {"lambda_max_residual": float(residuals[0])}

    return probe
