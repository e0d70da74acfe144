"""What else runs measure of themselves while they train, where a study asks for it: `measure.<name>` of its config.

Names of metrics, with the domain of the text they are measured on:

    trajectory      path/<what>/<layer>                     the path through weight space
    drift           hidden/<domain>/<what>/<layer>          hidden states beside the base's
    heads           attention/<domain>/<what>/<layer>/<head>, or heads/<domain>/…
    interference    interference/<what>/<domain>/<layer>    the target's gradient beside that of each other domain
    noise_scale     noise/<target>/<what>                   the gradient noise scale
    stability       stability/<what>                        sharpness, of the target's held-out text

Runs measure these one after the other, also those that train together. Gradients are those of the plain loss, without
regularisers. The path is the one probe that remembers: what it remembers is saved with the run's checkpoints, so that
a resumed run goes on with the path it was on.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax

from adaptlab import config, leaf, models, tree
from adaptlab.measure import Measurement, make_probe
from adaptlab.measure.heads import number_of_heads
from adaptlab.measure.trajectory import Path
from adaptlab.rng import key_for
from adaptlab.study.lab import Lab
from adaptlab.train import Checkpoints, Measure, Program, Run, Seat, device_numbers, reading
from adaptlab.train.loop import Course

__all__ = ["TrainingProbes", "probed", "training_probes"]

Metrics = dict[str, float]


class TrainingProbes(NamedTuple):
    """What the runs of one program measure besides held-out text; compiled once for all of them.

    Attributes:
      measure: `(numbers, base, delta) -> {metric: value}`, of one model by itself.
      path: the path through weight space; None follows none.
    """

    measure: Callable[[Any, Any, Any], Metrics]
    path: "_PathProgram | None"


def training_probes(lab: Lab, program: Program, base: Any) -> TrainingProbes | None:
    """Return what a lab's study asks for, or None if that is nothing.

    Args:
      lab: has the text and the config nodes, see `adaptlab.study.Probed`.
      program: binds the delta.
      base: what it is bound to.

    Raises:
      ValueError: what is asked for does not go with this model or this text.
    """
    wanted = lab.probes or {}
    each = [make(wanted[name], lab, program, base) for name, make in _MAKERS.items() if wanted.get(name)]
    path = _path_program(config.instantiate(wanted["trajectory"]), lab, program) if wanted.get("trajectory") else None
    if not each and path is None:
        return None

    def measure(numbers: Any, base: Any, delta: Any) -> Metrics:
        return {metric: value for one in each for metric, value in one(numbers, base, delta).items()}

    return TrainingProbes(measure, path)


def probed(
    probes: TrainingProbes | None,
    run: Run,
    seat: Seat,
    checkpoints: Checkpoints,
    begin: Callable[[Checkpoints], Course],
) -> Course:
    """Return a course whose measurements hold what the probes find too.

    Args:
      probes: see `training_probes`; None adds nothing.
      run: what is trained.
      seat: where its state is.
      checkpoints: of the run.
      begin: starts the course with these checkpoints, or with those that save the path too.
    """
    if probes is None:
        return (yield from begin(checkpoints))
    numbers, followed = device_numbers(run.numbers, run.seed, run.base)[0], None
    if probes.path is not None:
        followed = _Followed(probes.path, numbers, run.base)
        checkpoints = followed.kept_in(checkpoints)
    steps, outcome = begin(checkpoints), None
    try:
        while True:
            due = steps.send(outcome)  # pyright: ignore[reportArgumentType] (the first one is None)
            outcome = yield due
            if isinstance(due, Measure):
                # These transfer what they like: nothing waits for them but this run.
                with jax.transfer_guard("allow"):
                    state = seat.get()
                    outcome = {**outcome, **probes.measure(numbers, run.base, reading(state))}
                    outcome |= followed.point(state) if followed else {}
    except StopIteration as end:
        return end.value
    finally:
        steps.close()


# Each of one kind -----------------------------------------------------------------------------------------------------


def _loss(lab: Lab) -> Callable[..., Any]:
    return models.language_modelling(lab.pretrained.model)


def _objective(lab: Lab, program: Program) -> Callable[..., Any]:
    """`(delta, (numbers, base), batch, key) -> Mean`: the numbers are traced, so they stand beside the base."""
    loss = _loss(lab)
    return lambda delta, rest, batch, key: loss(program.bind(rest[0], rest[1], delta), batch, key)


def _over_text(
    measurement: Measurement, domains: Mapping[str, Any], bind: Callable[..., Any], rename: Callable[[str, str], str]
) -> Callable[..., Metrics]:
    probe = make_probe(measurement, domains, bind)

    def named(*args: Any) -> Metrics:
        return {rename(*name.split("/", 1)): value for name, value in probe(*args).items()}

    return named


def _inside(domain: str, metric: str) -> str:
    """`hidden/cka/0` of news is `hidden/news/cka/0`."""
    first, rest = metric.split("/", 1)
    return f"{first}/{domain}/{rest}"


def _drift(node: Any, lab: Lab, program: Program, base: Any) -> Callable[..., Metrics]:
    measurement = config.instantiate(node, model=lab.pretrained.model)
    return _over_text(measurement, lab.held_out, lambda n, base, d: (base, program.bind(n, base, d)), _inside)


def _heads(node: Any, lab: Lab, program: Program, base: Any) -> Callable[..., Metrics]:
    model = lab.pretrained.model
    measurement = config.instantiate(node, model=model, loss=_loss(lab), heads=number_of_heads(model, base))
    return _over_text(measurement, lab.held_out, program.bind, _inside)


def _interference(node: Any, lab: Lab, program: Program, base: Any) -> Callable[..., Metrics]:
    objective = _objective(lab, program)
    probe = config.instantiate(node, objective=objective, domains=lab.held_out, target=lab.target)
    return lambda numbers, base, delta: probe(delta, (numbers, base))


def _noise(node: Any, lab: Lab, program: Program, base: Any) -> Callable[..., Metrics]:
    measurement = config.instantiate(node, objective=_objective(lab, program))
    own = {lab.target: lab.held_out[lab.target]}
    return _over_text(measurement, own, lambda n, base, d: (d, (n, base)), lambda domain, m: f"noise/{domain}/{m}")


def _stability(node: Any, lab: Lab, program: Program, base: Any) -> Callable[..., Metrics]:
    given = {"objective": _objective(lab, program), "batches": lab.held_out[lab.target]}
    probe = config.instantiate(node, **given, key=key_for(0, "stability"))

    def named(numbers: Any, base: Any, delta: Any) -> Metrics:
        return {f"stability/{name}": value for name, value in probe(delta, (numbers, base)).items()}

    return named


_MAKERS = {
    "drift": _drift,
    "heads": _heads,
    "interference": _interference,
    "noise_scale": _noise,
    "stability": _stability,
}


# The path -------------------------------------------------------------------------------------------------------------


class _PathProgram(NamedTuple):
    """A fold over the points of a path, compiled; its memory is `{"step": of the last point, "path": PathState}`.

    Attributes:
      first: `(step, numbers, base, delta) -> memory`.
      later: `(memory, step, numbers, base, delta) -> memory`.
      like: `(step, numbers, base, delta) -> shapes of the memory with their shardings`.
      finish: `memory -> {metric: value}`.
    """

    first: Callable[..., Any]
    later: Callable[..., Any]
    like: Callable[..., Any]
    finish: Callable[[Any], Metrics]


def _path_program(path: Path, lab: Lab, program: Program) -> _PathProgram:
    def first(step: Any, numbers: Any, base: Any, delta: Any) -> Any:
        return {"step": step + 0, "path": path.init(base, program.bind(numbers, base, delta))}

    def later(memory: Any, step: Any, numbers: Any, base: Any, delta: Any) -> Any:
        return {"step": step + 0, "path": path.update(memory["path"], base, program.bind(numbers, base, delta))}

    compiled: dict[str, Any] = {}

    def like(*args: Any) -> Any:
        if "like" not in compiled:
            compiled["like"] = _placed(jax.eval_shape(first, *args), args[2], lab.placement.replicated)
        return compiled["like"]

    def run(name: str, function: Callable[..., Any], args: Any, point: Any) -> Any:
        if name not in compiled:
            where = jax.tree.map(lambda x: x.sharding, like(*point))
            compiled[name] = jax.jit(function, out_shardings=where)
        return compiled[name](*args)

    return _PathProgram(
        lambda *point: run("first", first, point, point),
        lambda memory, *point: run("later", later, (memory, *point), point),
        like,
        lambda memory: path.finish(memory["path"]),
    )


def _placed(memory: Any, base: Any, replicated: Any) -> Any:
    """Say where a path's memory lies: what has the path and shape of a weight, beside it; the rest everywhere."""
    weights = {path: x for path, x in tree.flatten(base, leaf.is_node).items() if isinstance(x, jax.Array)}

    def place(path: str, x: Any) -> Any:
        weight = weights.get(path)
        where = replicated if weight is None or weight.shape != x.shape else weight.sharding
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where)

    return jax.tree.map_with_path(lambda at, x: place(str(getattr(at[-1], "key", "")), x), memory)


class _Followed:
    """The path of one run: its memory, and the checkpoints that hold it."""

    def __init__(self, path: _PathProgram, numbers: Any, base: Any) -> None:
        self._path, self._numbers, self._base, self._memory = path, numbers, base, None

    def point(self, state: Any) -> Metrics:
        """Add a state to the path, unless it is its last point already: where a run was resumed."""
        at = (state.step, self._numbers, self._base, reading(state))
        if self._memory is None:
            self._memory = self._path.first(*at)
        elif int(jax.device_get(self._memory["step"])) != int(jax.device_get(state.step)):
            self._memory = self._path.later(self._memory, *at)
        return self._path.finish(self._memory)

    def kept_in(self, checkpoints: Checkpoints) -> Checkpoints:
        """Return checkpoints that hold the memory beside what early stopping remembers."""

        def save(state: Any) -> None:
            # As a list: the names of the weights in it hold slashes.
            checkpoints.save(state._replace(watch={"watch": state.watch, "path": jax.tree.leaves(self._memory)}))

        def restore(like: Any) -> Any:
            memory = self._path.like(like.step, self._numbers, self._base, like.delta)
            leaves, structure = jax.tree.flatten(memory)
            found = checkpoints.restore(like._replace(watch={"watch": like.watch, "path": leaves}))
            if found is None:
                return None
            self._memory = jax.tree.unflatten(structure, found.watch["path"])
            return found._replace(watch=found.watch["watch"])

        return checkpoints._replace(save=save, restore=restore)
