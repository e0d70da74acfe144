"""The straight line from the base to each tuned model, and between tuned models that differ in their seed only.

What is measured of a run is kept in its folder, so that an interrupted study goes on where it was.
"""

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import adapt, models, rng, tree
from adaptlab.measure.connectivity import barrier, connect
from adaptlab.measure.curvature import apply, hessian, stack_batches
from adaptlab.measure.landscape import (
    Surface,
    difference,
    line,
    make_landscape,
    normalized,
    plane,
    random_direction,
)
from adaptlab.study.folder import write_json
from adaptlab.study.lab import Lab
from adaptlab.study.landscape.labs import FinalLandscape, dense_base, even_domains, open_tuned
from adaptlab.study.members import Member
from adaptlab.train import make_objective

__all__ = ["straight_lines"]

log = logging.getLogger(__name__)

Line = dict[str, Any]
"""`{"t": [T], "loss": {domain: [T]}, "numbers": {name: number}}`; both first empty where a run diverged."""


def straight_lines(
    lab: Lab,
    members: Sequence[Member],
    pairs: Mapping[str, tuple[Member, Member]],
    folder: Path,
    wanted: FinalLandscape,
) -> tuple[dict[str, Line], dict[str, Line]]:
    """Measure the lines from the base to each tuned model and between runs and their twins: `{run: line}` of each.

    With Δ = W' - W the update, L the held-out loss of a domain, U the mean of L over the upstream domains, g and H its
    gradient and Hessian at the base, and R a random direction with the norm of Δ in each filter, the numbers are:

        distance, relative_distance     ‖Δ‖, ‖Δ‖ / ‖W‖
        barrier_target                  max_t L(W + tΔ) - (1 - t) L(W) - t L(W'), of the target
        barrier_upstream                the largest such barrier of an upstream domain
        rise_target, rise_upstream      the same with a sign, see `adaptlab.measure.connectivity.barrier`
        hump                            the largest max_t L(W + tΔ) - max(L(W), L(W')) of any domain
        curvature_update                ΔᵀHΔ / ΔᵀΔ
        curvature_random                RᵀHR / RᵀR, mean over R
        curvature_excess                curvature_update - 3 |curvature_random|: positive if it is three times as large
        slope, forecast                 g·Δ, and g·Δ + ΔᵀHΔ / 2: what forgetting would be if U were quadratic
        random_change                   U(W + R) - U(W), mean over R

    The barrier is that of Entezari et al. (arXiv:2110.06296, definition 2.1); two models without one between
    them are said to lie in one basin (arXiv:2008.11687). A hump is what a path goes up before it goes down. Of twins
    there are `twin_distance`, and as `twin_…` the barriers, rises and the hump. These follow from the losses on the
    line, so they are not kept in its file but computed from it.

    Args:
      lab: what the runs shared.
      members: the runs.
      pairs: `{run: (member, its twin)}`.
      folder: the study's.
      wanted: see `FinalLandscape`.
    """
    homes = {member.name: folder / "runs" / member.name for member in members}
    todo = [home / "line.json" for home in homes.values()] + [homes[name] / "twin_line.json" for name in pairs]
    if not all(path.exists() for path in todo):
        work = _Lines(lab, folder, wanted)
        for member in members:
            if not (path := homes[member.name] / "line.json").exists():
                write_json(path, work.from_base(member))
        for name, pair in pairs.items():
            if not (path := homes[name] / "twin_line.json").exists():
                write_json(path, work.between(*pair))
    log.info("%s: the lines to %d tuned models are measured", lab.target, len(homes))
    lines = {name: _read(home / "line.json", lab) for name, home in homes.items()}
    return lines, {name: _read(homes[name] / "twin_line.json", lab, "twin_") for name in pairs}


def _read(path: Path, lab: Lab, prefix: str = "") -> Line:
    """A line, with what its shape says besides what was measured."""
    found = json.loads(path.read_text())
    if not found["t"]:
        return found
    loss = {domain: np.array(x, np.float64) for domain, x in found["loss"].items()}
    along = Surface((np.array(found["t"]),), loss, ("t",), {}, len(found["t"]))
    barriers, upstream = {domain: barrier(along, domain) for domain in loss}, [d for d in loss if d != lab.target]
    numbers = {
        "barrier_target": barriers[lab.target].height,
        "barrier_upstream": max(barriers[domain].height for domain in upstream),
        "rise_target": barriers[lab.target].rise,
        "rise_upstream": max(barriers[domain].rise for domain in upstream),
        "hump": max(float(x.max() - max(x[0], x[-1])) for x in loss.values()),
    }
    return found | {"numbers": found["numbers"] | {f"{prefix}{name}": value for name, value in numbers.items()}}


class _Lines:
    """What the lines of a lab share: the base, compiled programs, and the gradient of upstream text."""

    def __init__(self, lab: Lab, folder: Path, wanted: FinalLandscape) -> None:
        self._lab, self._wanted = lab, wanted
        self._tuned, self._base = open_tuned(lab, folder), dense_base(lab)
        self._losses = make_landscape(lab.measurement, lab.held_out)
        self._upstream = {name: part for name, part in lab.held_out.items() if name != lab.target}
        batches = stack_batches(even_domains(self._upstream))
        objective = make_objective(models.language_modelling(lab.pretrained.model), adapt.full())
        self._hessian = hessian(objective, self._base, {}, batches)
        self._gradient = _gradient(objective)(self._base, batches)

    def from_base(self, member: Member) -> Line:
        tuned = self._tuned(member)
        update = difference(self._base, tuned)
        length, whole = float(tree.norm(update)), float(tree.norm(self._base))
        if not 0 < length < math.inf:  # it diverged, or never moved
            return {"t": [], "loss": {}, "numbers": {}}
        measured = self._between("base", self._base, tuned)
        numbers = {"distance": length, "relative_distance": length / whole}
        at_base = {domain: losses[0] for domain, losses in measured["loss"].items()}
        numbers |= self._curvature(update, length) | self._random(update, at_base, member)
        numbers["curvature_excess"] = numbers["curvature_update"] - 3 * abs(numbers["curvature_random"])
        return measured | {"numbers": numbers}

    def between(self, member: Member, twin: Member) -> Line:
        one, other = self._tuned(member), self._tuned(twin)
        length = float(tree.norm(difference(one, other)))
        if not 0 < length < math.inf:
            return {"t": [], "loss": {}, "numbers": {}}
        return self._between("run", one, other) | {"numbers": {"twin_distance": length}}

    def _between(self, name: str, one: Any, other: Any) -> Line:
        found = connect(self._losses, one, other, names=(name, "tuned"), points=self._wanted.line_points)
        loss = {domain: found.values[f"{domain}/loss"].tolist() for domain in self._lab.held_out}
        return {"t": found.coordinates[0].tolist(), "loss": loss}

    def _curvature(self, update: Any, length: float) -> dict[str, float]:
        bent = float(tree.dot(update, apply(self._hessian, update)))
        slope = float(tree.dot(self._gradient, update))
        return {"curvature_update": bent / length**2, "forecast": slope + bent / 2, "slope": slope}

    def _random(self, update: Any, at_base: Mapping[str, float], member: Member) -> dict[str, float]:
        """The same along directions that share nothing with the update but its norm in each filter."""
        curvatures, changes = [], []
        for i in range(self._wanted.random_directions):
            key = rng.key_for(member.seed, f"landscape/{member.name}", i)
            drawn = random_direction(key, update, "none", vectors="normalized")
            along = normalized(drawn, update, "filter", vectors="normalized")
            curvatures.append(float(tree.dot(along, apply(self._hessian, along)) / tree.dot(along, along)))
            moved = line(self._losses, plane(self._base, [along]), [1.0]).values
            changes.append(float(np.mean([moved[f"{name}/loss"][0] - at_base[name] for name in self._upstream])))
        return {"curvature_random": float(np.mean(curvatures)), "random_change": float(np.mean(changes))}


def _gradient(objective: Any) -> Callable[[Any, Any], Any]:
    """Return `(params, stacked batches) -> gradient` of the mean over all batches."""

    def mean(params: Any, stacked: Any) -> jax.Array:
        def add(total: Any, batch: Any) -> tuple[Any, None]:
            one = objective(params, {}, batch, rng.key_for(0, "gradient"))
            return (total[0] + one.sum, total[1] + one.weight), None

        (total, weight), _ = jax.lax.scan(jax.checkpoint(add), (jnp.zeros(()), jnp.zeros(())), stacked)
        return total / weight

    gradient = jax.jit(jax.grad(mean))
    return lambda params, batches: gradient(params, batches.stacked)
