"""Loss surfaces of a study: planes through its models, with the ways that training took on them.

A finished surface is kept in the study's folder, so that an interrupted study goes on where it was.
"""

import logging
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adaptlab import adapt, models, rng, tree
from adaptlab.measure.curvature import hessian, stack_batches, top_eigenpairs
from adaptlab.measure.landscape import (
    NORMALIZATIONS,
    Plane,
    curvature_plane,
    difference,
    make_landscape,
    plane,
    plane_through,
    project,
    random_direction,
    surface,
    ticks_around,
)
from adaptlab.report.landscape.data import Surface, load_surface, save_picture
from adaptlab.study.lab import Lab
from adaptlab.study.landscape.labs import FinalLandscape, dense_base, even_domains, open_tuned
from adaptlab.study.members import Member
from adaptlab.study.moments import open_moments
from adaptlab.study.programs import training_program
from adaptlab.train import device_numbers, make_objective, reading

__all__ = ["replayed", "surfaces"]

log = logging.getLogger(__name__)

Drawn = tuple[Plane, tuple[np.ndarray, ...], str]
"""A plane, its ticks, and what it is in words."""


def surfaces(
    lab: Lab, shown: Mapping[str, Member], ways: Mapping[str, Member], folder: Path, wanted: FinalLandscape
) -> dict[str, Surface]:
    """Measure the loss of every domain on the planes that are wanted, and return `{plane: surface}`.

    Args:
      lab: what the runs shared.
      shown: the tuned models by name; the plane of models goes through the base and the first two of them.
      ways: the runs whose trajectories are projected on that plane, by name. Training keeps no states, so these runs
        are done again: they are deterministic, and what they end in is compared with what was saved.
      folder: the study's.
      wanted: see `FinalLandscape`.
    """
    found = {}
    for name in wanted.planes:
        path = folder / "surfaces" / f"{lab.target}_{name}.json"
        if not path.exists():
            save_picture(path, _measured(name, lab, shown, ways, folder, wanted))
        found[name] = load_surface(path)
        log.info("surface %s: %d points", name, wanted.grid**2)
    return found


def _measured(
    name: str,
    lab: Lab,
    shown: Mapping[str, Member],
    ways: Mapping[str, Member],
    folder: Path,
    wanted: FinalLandscape,
) -> Surface:
    makers = {"models": _models_plane, "random": _random_plane, "sharpest": _sharpest_plane}
    drawn, ticks, title = makers[name](lab, shown, folder, wanted)
    found = surface(make_landscape(lab.measurement, lab.held_out), drawn, ticks)
    paths, inside = {}, {}
    for label, member in ways.items() if name == "models" else ():
        paths[label], inside[label] = _projected(lab, member, drawn, folder)
    return Surface(
        title=title,
        x_X=ticks[0],
        y_Y=ticks[1],
        loss={domain: found.values[f"{domain}/loss"].T for domain in lab.held_out},
        marks={label: (float(at[0]), float(at[1])) for label, at in found.marks.items()},
        paths=paths,
        inside=inside,
        x_label=found.labels[0],
        y_label=found.labels[1],
    )


def _models_plane(lab: Lab, shown: Mapping[str, Member], folder: Path, wanted: FinalLandscape) -> Drawn:
    tuned = open_tuned(lab, folder)
    through = {"base": dense_base(lab)} | {name: tuned(member) for name, member in [*shown.items()][:2]}
    drawn = plane_through(through)
    return drawn, ticks_around(drawn, wanted.grid, wanted.margin), f"The plane through {', '.join(through)}"


def _random_plane(lab: Lab, shown: Mapping[str, Member], folder: Path, wanted: FinalLandscape) -> Drawn:
    base = dense_base(lab)
    directions = [random_direction(rng.key_for(0, "landscape/plane", i), base, "filter") for i in range(2)]
    labels = [f"random direction {i} ({NORMALIZATIONS['filter']})" for i in (1, 2)]
    drawn = plane(base, directions, labels, {"base": [0.0, 0.0]})
    return drawn, (np.linspace(-1, 1, wanted.grid),) * 2, "Around the base, along two random directions"


def _sharpest_plane(lab: Lab, shown: Mapping[str, Member], folder: Path, wanted: FinalLandscape) -> Drawn:
    """One unit is the length of the first tuned model's update, or a random plane would not be on its scale."""
    base, (name, first) = dense_base(lab), next(iter(shown.items()))
    upstream = {domain: part for domain, part in lab.held_out.items() if domain != lab.target}
    objective = make_objective(models.language_modelling(lab.pretrained.model), adapt.full())
    operator = hessian(objective, base, {}, stack_batches(even_domains(upstream, wanted.rows)))
    key = rng.key_for(0, "landscape/sharpest")
    pairs = top_eigenpairs(operator, 2, key=key, tolerance=wanted.tolerance)
    length = float(tree.norm(difference(base, open_tuned(lab, folder)(first))))
    drawn = curvature_plane(base, pairs, length=length)
    labels = [
        f"eigenvector {i + 1} of the Hessian on upstream text, λ = {float(pairs.values[i]):.3g} (1 = the distance from "
        f"base to {name})"
        for i in range(2)
    ]
    drawn = drawn._replace(labels=tuple(labels), marks={"base": np.zeros(2)})
    return drawn, (np.linspace(-1, 1, wanted.grid),) * 2, "Around the base, along its two sharpest directions"


def _projected(lab: Lab, member: Member, drawn: Plane, folder: Path) -> tuple[np.ndarray, float]:
    """The way of a run on a plane, and the share of the squared distance at its end that the plane sees."""
    places, last = [], None
    for params in replayed(lab, member):
        last = params
        seen = project(drawn, [params])
        places.append((seen.coordinates[0], seen.explained))
    saved = open_tuned(lab, folder)(member)
    moved = float(tree.norm(difference(drawn.origin, saved)))
    off = float(tree.norm(difference(last, saved))) / moved if moved else math.nan
    if not off <= 1e-3:
        log.warning("%s, done again, ended %.2g of its update away from what it had saved", member.name, off)
    return np.stack([place for place, _ in places]), places[-1][1]


def replayed(lab: Lab, member: Member) -> Iterator[Any]:
    """Do a run again, and yield the model as arrays wherever it was measured: at step 0, every few steps, at the end.

    Args:
      lab: the run's.
      member: the run.
    """
    program = training_program(lab, member)
    carried = member.skeleton["carry"]
    moments = open_moments(lab.base, lab.pretrained.fingerprint, lab.placement) if carried else None
    scalars = device_numbers(member.numbers, member.seed, lab.params)
    base = program.prepare(scalars[0], lab.params)
    dense: Callable[..., Any] = jax.jit(lambda *args: adapt.materialize(program.bind(*args)))
    state, batches = program.init(*scalars, base, moments), lab.batches(member.seed)
    for step in range(lab.total_steps + 1):
        if step % lab.training.measure_every == 0 or step == lab.total_steps:
            yield dense(scalars[0], base, reading(state))
        if step < lab.total_steps:
            state, _ = program.step(*scalars, state, base, lab.put(batches(step)))
