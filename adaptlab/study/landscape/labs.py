"""What a study of loss landscapes is set up with: its labs, its tuned models as plain weights, its settings."""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from adaptlab import adapt, config
from adaptlab.study.lab import Lab, lab_settings, load_lab
from adaptlab.study.members import Member, members, method_program
from adaptlab.train import device_numbers

__all__ = ["FinalLandscape", "at_own_rate", "dense_base", "even_domains", "open_labs", "open_tuned", "twins"]

log = logging.getLogger(__name__)

_PLANES = ("models", "random", "sharpest")
_TWIN = 1000  # what a twin's seed is above that of its run


class FinalLandscape(NamedTuple):
    """What is measured of the loss landscape after training.

    Attributes:
      line_points: points of each straight line between two models, ends included.
      random_directions: per run, of the norm that its update has in each filter, to compare the update with.
      rows: of each held-out batch that spectra and eigenvectors are of; None takes all.
      shown: the arms, at their own `optim.lr` and the first seed, of which there are surfaces and spectra: the plane of
        models goes through the base and the first two.
      trajectories: the arms whose way is drawn on that plane.
      planes: which surfaces: "models" (that plane), "random" (two directions with the norms of the base's filters),
        "sharpest" (the two sharpest directions of the base on upstream text).
      grid: points along each axis of a surface.
      margin: how far a surface goes beyond its models, as a share of their extent.
      spectra: whether there are spectra of the base and of what is shown.
      eigenpairs: of the Hessian, computed each by itself.
      tolerance: of their residuals, relative to the eigenvalue.
      probes: random vectors of a spectral density.
      nodes: Lanczos steps from each.
    """

    line_points: int = 7
    random_directions: int = 1
    rows: int | None = None
    shown: Sequence[str] = ("full", "lora")
    trajectories: Sequence[str] = ("full", "lora")
    planes: Sequence[str] = ("models", "random", "sharpest")
    grid: int = 13
    margin: float = 0.4
    spectra: bool = True
    eigenpairs: int = 4
    tolerance: float = 0.01
    probes: int = 3
    nodes: int = 16


def open_labs(study: Any) -> dict[str, Lab]:
    """Load a lab for each of a study's targets, all over one base, and check what shall be measured in them.

    Args:
      study: has `targets`, `{name: config of a corpus}`, in place of the `target` that `adaptlab.study.open_lab` takes,
        and `measure` (see `FinalLandscape`), `arms`, `shown` and `twins` (see `experiments.loss_landscape`).

    Raises:
      ConfigError: settings that name nothing, or too few points to measure anything.
    """
    _check(config.instantiate(study.measure), [*study.arms])
    methods = [f"{place}_{arm}" for place in study.targets for arm in study.arms]
    named = [(f"arms.{arm}.targets", change.get("targets", []), [*study.targets]) for arm, change in study.arms.items()]
    named += [("shown", [study.shown], [*study.targets]), ("twins", study.twins, methods)]
    for key, names, choices in named:
        if unknown := [name for name in names if name not in choices]:
            raise config.ConfigError(f"{key}={unknown}: choose from {', '.join(choices)}.")
    settings, labs = lab_settings(study) | {"measure": None}, {}
    for name, target in study.targets.items():
        lab = load_lab(settings | {"target": target})
        first = next(iter(labs.values()), lab)
        labs[name] = lab._replace(params=first.params)  # one copy of the base
    return labs


def _check(wanted: FinalLandscape, arms: Sequence[str]) -> None:
    for key, choices in (("shown", arms), ("trajectories", arms), ("planes", _PLANES)):
        if unknown := [name for name in getattr(wanted, key) if name not in choices]:
            raise config.ConfigError(f"measure.{key}={unknown}: choose from {', '.join(choices)}.")
    if "models" in wanted.planes and len(wanted.shown) < 2:
        raise config.ConfigError(
            f"measure.shown={list(wanted.shown)}: the plane of models needs two arms; name them, or leave `models` out "
            "of measure.planes."
        )
    for key, least in (("line_points", 3), ("grid", 3), ("probes", 2), ("nodes", 2), ("random_directions", 1)):
        if getattr(wanted, key) < least:
            raise config.ConfigError(f"measure.{key}={getattr(wanted, key)} must be at least {least}.")


def at_own_rate(methods: Mapping[str, Mapping[str, Any]], names: Iterable[str], seed: int) -> dict[str, Member]:
    """Return the run of each named method at its own `optim.lr`, `{name: member}`.

    Args:
      methods: see `adaptlab.study.Method`.
      names: some of them.
      seed: of the runs.

    Raises:
      ConfigError: a name that is no method, or whose own learning rate is not among those that are run.
    """
    found = {}
    for name in names:
        if name not in methods:
            raise config.ConfigError(f"{name!r} is no method of this target; there are {', '.join(methods)}.")
        rate, rates = methods[name]["optim"]["lr"], methods[name]["learning_rates"]
        if rate not in rates:
            raise config.ConfigError(f"{name} is not run at its own optim.lr={rate:g}: add 1 to its multiples.")
        (found[name],) = members({name: {**methods[name], "learning_rates": [rate]}}, [seed])
    return found


def twins(
    methods: Mapping[str, Mapping[str, Any]], names: Iterable[str], seeds: Iterable[int]
) -> dict[str, tuple[Member, Member]]:
    """Return `{run: (member, twin)}`: runs at their method's own rate, and the same with other seeds.

    Every twin belongs to one run only, so that what is measured between them is independent from pair to pair.

    Args:
      methods: see `adaptlab.study.Method`.
      names: those with twins; of another target's are passed over.
      seeds: of the runs; a twin's is a thousand more.
    """
    own = [name for name in names if name in methods]
    pairs = [(at_own_rate(methods, own, seed), at_own_rate(methods, own, seed + _TWIN)) for seed in seeds]
    return {one[name].name: (one[name], other[name]) for one, other in pairs for name in own}


def dense_base(lab: Lab) -> Any:
    """The base as arrays: where weights are kept in few bits, what they stand for."""
    return _dense(lab, adapt.materialize)(lab.params)


def _dense(lab: Lab, f: Callable[..., Any]) -> Callable[..., Any]:
    """Compile what returns a model as arrays, each where the base's weight is, so that models share programs."""

    def dense(*args: Any) -> Any:
        params = f(*args)
        return jax.lax.with_sharding_constraint(params, lab.placement.shardings(lab.placement.axes, params))

    return jax.jit(dense)


def open_tuned(lab: Lab, folder: Path) -> Callable[[Member], Any]:
    """Return `member -> params`: a tuned model as arrays, from the delta that its run saved.

    Args:
      lab: what the runs shared.
      folder: the study's.
    """
    programs: dict[str, tuple[Any, Callable[..., Any]]] = {}

    def prepare(member: Member) -> tuple[Any, Callable[..., Any]]:
        program = method_program(member, lab.pretrained.model, lab.total_steps, target=lab.target)
        base = program.prepare(device_numbers(member.numbers, 0, lab.params)[0], lab.params)
        return base, _dense(lab, lambda *args: adapt.materialize(program.bind(*args)))

    def tuned(member: Member) -> Any:
        if member.program not in programs:
            programs[member.program] = prepare(member)
        base, dense = programs[member.program]
        path = folder / "runs" / member.name / "delta.safetensors"
        saved = adapt.load_delta(path, base=lab.pretrained.fingerprint)
        return dense(device_numbers(member.numbers, member.seed, lab.params)[0], base, saved.delta)

    return tuned


def even_domains(held_out: Mapping[str, Sequence[Any]], rows: int | None = None) -> list[Any]:
    """Return the batches of several domains, weighted so that a mean over all is the plain mean of the domains' means.

    Forgetting is that mean, and so is what curvature is measured of.

    Args:
      held_out: `{domain: batches}` with `weights`.
      rows: of each batch; None takes all.
    """
    cut = {name: [jax.tree.map(lambda x: x[:rows], batch) for batch in part] for name, part in held_out.items()}
    return [
        batch._replace(weights=batch.weights / sum(one.weights.sum() for one in part))
        for part in cut.values()
        for batch in part
    ]
