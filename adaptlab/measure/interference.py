"""Do two tasks pull on the same weights, and in which direction? Gradients of two domains, and Fisher informations."""

from collections.abc import Callable, Iterable, Mapping
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from adaptlab import tree
from adaptlab.config import GIVEN
from adaptlab.measure.by_layer import Groups, cosine, layer_dot, named_by_layer, summed_by_layer, with_all
from adaptlab.rng import key_for

__all__ = ["fisher_overlap", "gradient_cosine", "make_interference_probe"]

Objective = Callable[[Any, Any, Any, jax.Array], Any]
"""`(delta, base, batch, key) -> Mean`, see `adaptlab.train.make_objective`."""


class _Halves(NamedTuple):
    """The summed gradients of every other batch and of the rest, and their weights."""

    even: Any
    odd: Any
    even_weight: jax.Array
    odd_weight: jax.Array


def gradient_cosine(a: Any, b: Any) -> Groups:
    """Return the cosine of two gradients (or updates) of one structure, `{group: [L] or []}` and of "all".

    Successive gradients of one run, or those of two tasks at one point; nan where one of them is zero.
    """
    return cosine(layer_dot(a, b), layer_dot(a, a), layer_dot(b, b))


def make_interference_probe(
    objective: Annotated[Objective, GIVEN],
    domains: Annotated[Mapping[str, Iterable[Any]], GIVEN],
    target: Annotated[str, GIVEN],
    *,
    seed: int = 0,
) -> Callable[[Any, Any], dict[str, float]]:
    """Return `probe(delta, base) -> {metric: value}`: the target's gradient g beside that h of each other domain.

    By layer and of all, named `interference/<what>/<domain>/<group>`:
      cosine: ⟨g, h⟩ / (‖g‖ ‖h‖) of the gradients over all batches. Below zero, a step down the target's loss goes up
        the domain's: interference; above, transfer.
      corrected_cosine: the same with ‖g‖² and ‖h‖² estimated without bias, ‖g‖² by ⟨g₁, g₂⟩ of halves of the batches.
        Noise lengthens gradients and pulls their cosine to zero; this undoes it on average, may leave [-1, 1], and is
        absent where there is more noise than gradient, or only one batch.
      slope: -⟨g, h⟩ / ‖g‖, how fast the domain's loss changes with the distance gone straight down the target's, in
        nats per unit of length; positive is forgetting. Of a layer: that layer alone being moved.

    Args:
      objective: its gradient by delta is taken.
      domains: `{name: batches}`; those of one domain have one shape.
      target: the domain that is trained on.
      seed: of what the objective draws; the same for every batch.

    Raises:
      ValueError: a target that is no domain, no other domain, or one without batches.
    """
    batches = {name: list(part) for name, part in domains.items()}
    if target not in batches or len(batches) < 2:
        raise ValueError(f"target={target!r} must be one of two or more domains; there are {sorted(batches)}.")
    if empty := [name for name, part in batches.items() if not part]:
        raise ValueError(f"The domains {empty} have no batches to take gradients of.")

    @jax.jit
    def add(total: Any, weight: Any, delta: Any, base: Any, batch: Any) -> tuple[Any, Any]:
        def summed(delta: Any) -> tuple[Any, Any]:
            mean = objective(delta, base, batch, key_for(seed, "interference"))
            return mean.sum, mean.weight

        gradient, more = jax.grad(summed, has_aux=True)(delta)
        return jax.tree.map(jnp.add, total, gradient), weight + more

    # Compiled, so that a probe transfers nothing on its own: training forbids that.
    nothing = jax.jit(lambda delta: (jax.tree.map(jnp.zeros_like, delta), jnp.zeros(())))
    compare = jax.jit(_compared)

    def halves(part: list[Any], delta: Any, base: Any) -> _Halves:
        sums = []
        for half in (part[::2], part[1::2]):
            total, weight = nothing(delta)
            for batch in half:
                total, weight = add(total, weight, delta, base, batch)
            sums.append((total, weight))
        (even, even_weight), (odd, odd_weight) = sums
        return _Halves(even, odd, even_weight, odd_weight)

    def probe(delta: Any, base: Any) -> dict[str, float]:
        own, found = halves(batches[target], delta, base), {}
        for name in batches.keys() - {target}:
            for what, groups in jax.device_get(compare(own, halves(batches[name], delta, base))).items():
                found |= named_by_layer(f"interference/{what}/{name}", groups)
        return dict(sorted(found.items()))

    return probe


def _compared(own: _Halves, other: _Halves) -> dict[str, Groups]:
    g, h = _whole(own), _whole(other)
    gh, gg, hh = layer_dot(g, h), layer_dot(g, g), layer_dot(h, h)
    slope = jax.tree.map(lambda x, y: -x / jnp.sqrt(y), with_all(gh), with_all(gg))
    return {"cosine": cosine(gh, gg, hh), "corrected_cosine": cosine(gh, _square(own), _square(other)), "slope": slope}


def _scaled(x: Any, factor: jax.Array) -> Any:
    return jax.tree.map(lambda leaf: leaf * factor.astype(leaf.dtype), x)


def _whole(sums: _Halves) -> Any:
    total = jax.tree.map(jnp.add, sums.even, sums.odd)
    return _scaled(total, 1.0 / (sums.even_weight + sums.odd_weight))


def _square(sums: _Halves) -> Groups:
    """‖g‖² without the noise's share: ⟨g₁, g₂⟩ of independent halves; 0/0 of a half without batches."""
    even, odd = _scaled(sums.even, 1.0 / sums.even_weight), _scaled(sums.odd, 1.0 / sums.odd_weight)
    return layer_dot(even, odd)


def fisher_overlap(a: Any, b: Any) -> Groups:
    """Return how far two tasks use the same weights, by layer and of "all" (arXiv:1612.00796, app. 4.3).

    With F̂ the diagonals at trace 1, the Fréchet distance between them is d² = ½ tr(F̂_a + F̂_b - 2 (F̂_a F̂_b)^½), and

        overlap = 1 - d² = Σ_j √(f̂_a,j f̂_b,j)

    from 0, where no weight matters to both, to 1, where all matter to both in the same proportions. Each layer's are
    normalised by themselves; nan where a task's are all zero.

    Args:
      a: a diagonal, see `adaptlab.measure.fisher_diagonal`.
      b: that of the other task, of the same structure.

    Returns:
      `{group: [L] or []}`.

    Raises:
      ValueError: diagonals of different structures.
    """
    flat, other = tree.flatten(a), tree.flatten(b)
    if {path: x.shape for path, x in flat.items()} != {path: x.shape for path, x in other.items()}:
        raise ValueError("The two Fisher diagonals are of different parameters: take both of the same model's.")
    both = summed_by_layer((path, jnp.sqrt(x) * jnp.sqrt(other[path])) for path, x in flat.items())
    return cosine(both, summed_by_layer(flat.items()), summed_by_layer(other.items()))
