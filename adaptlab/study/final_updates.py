"""What a study measures of its runs' updates once they are trained, from the deltas they saved.

Each run's measurements are kept in its folder (`updates.json`), so that an interrupted study goes on where it was.
"""

import json
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import adapt, leaf, models, preempt, rng, tree
from adaptlab.measure import make_probe, measured_updates
from adaptlab.measure.update import singular_vectors, updates
from adaptlab.measure.update_probe import make_update_probe, named
from adaptlab.measure.update_relation import leading
from adaptlab.measure.update_subspaces import leading_vectors, subspaces
from adaptlab.study.folder import write_json
from adaptlab.study.lab import Lab, apart
from adaptlab.study.members import Member, method_program
from adaptlab.train import Program, device_numbers, make_objective

__all__ = ["FinalUpdates", "final_updates"]

log = logging.getLogger(__name__)

_MEASURED = "updates.json"


class FinalUpdates(NamedTuple):
    """What is measured of updates after training.

    Attributes:
      select: patterns of whole `/`-joined paths: of which matrices.
      k: how many singular vectors are leading, see `adaptlab.measure.update_subspaces.subspaces`.
      epsilons: the ε of intruder dimensions.
      gradient_batches: the gradient at the start is the mean over so many of a run's first batches.
      ranks: the ranks to which updates are cut to see what is left of gain and forgetting.
    """

    select: str | Sequence[str] = "layers/.*/kernel"
    k: int = 8
    epsilons: Sequence[float] = (0.3, 0.5, 0.7, 0.9)
    gradient_batches: int = 8
    ranks: Sequence[int] = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256)


def final_updates(
    lab: Lab, members: Sequence[Member], folder: Path, wanted: FinalUpdates, cut: Mapping[str, float]
) -> dict[str, dict[str, float]]:
    """Measure the saved deltas of a study, and return `{run: {metric: value}}`.

    Besides the metrics of `adaptlab.measure.measured_updates` and `subspaces`, named as there, with σ₁, σ₂, σ₄, …:
    `truncated/<rank>/<domain>/loss`, the held-out loss with each matrix's ΔW cut to its leading singular triples, and
    all else that was trained as it is. (At rank 0, that is what the other weights alone have learnt.)

    Args:
      lab: what the runs shared.
      members: the runs; those without a saved delta are passed over.
      folder: the study's.
      wanted: see `FinalUpdates`.
      cut: `{method: learning rate}`: the runs whose updates are also cut.
    """
    homes = {member.name: folder / "runs" / member.name for member in members}
    groups: dict[str, list[Member]] = {}
    for member in members:
        if (homes[member.name] / "delta.safetensors").exists():
            groups.setdefault(member.program, []).append(member)
    parts = [(part, _Base(part, wanted)) for part in apart(lab)]
    for group in groups.values():
        left = iter([member for member in group if not (homes[member.name] / _MEASURED).exists()])

        def measure(part: Lab, base: _Base, left: Iterator[Member] = left) -> None:
            program = None
            for member in left:  # a list's iterator gives each member to one thread
                if preempt.noticed():
                    raise preempt.Preempted
                program = program or _Measured(part, member, wanted, base)
                home = homes[member.name]
                write_json(home / _MEASURED, program.measure(member, home, cut.get(member.method) == member.lr))

        with ThreadPoolExecutor(len(parts)) as threads:
            for done in [threads.submit(measure, *part) for part in parts]:
                done.result()
        log.info("%s: the updates of %d runs are measured", group[0].method, len(group))
    return {
        member.name: json.loads((homes[member.name] / _MEASURED).read_text())
        for group in groups.values()
        for member in group
    }


class _Base:
    """What of the base all runs are compared with, computed when it is first needed."""

    def __init__(self, lab: Lab, wanted: FinalUpdates) -> None:
        self._lab, self._wanted = lab, wanted
        self._vectors: Any = None
        self._gradients: dict[int, Any] = {}
        objective = make_objective(models.language_modelling(lab.pretrained.model), adapt.full())

        def loss(params: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
            total, weight = objective(params, params, batch, rng.key_for(0, "gradient"))
            return jnp.asarray(total), jnp.asarray(weight)

        self._gradient = jax.jit(jax.grad(loss, has_aux=True))
        self._leading = jax.jit(lambda params, k: self._each(params, k), static_argnums=1)

    def vectors(self) -> Any:
        """`{path: singular triples of W}`, of U only the k leading columns."""
        if self._vectors is None:
            whole = self._leading(self._lab.params, None)
            self._vectors = {path: svd._replace(u=svd.u[..., : self._wanted.k]) for path, svd in whole.items()}
        return self._vectors

    def gradient(self, seed: int) -> Any:
        """`{path: leading singular triples of the loss's gradient}` at the base, over a run's first batches."""
        if seed not in self._gradients:
            stream = self._lab.batches(seed)
            steps = [
                self._gradient(self._lab.params, self._lab.put(stream(i))) for i in range(self._wanted.gradient_batches)
            ]
            total = jax.tree.map(lambda *x: sum(x), *(gradient for gradient, _ in steps))
            self._gradients[seed] = self._leading(total, self._wanted.k)
        return self._gradients[seed]

    def _each(self, params: Any, k: int | None) -> Any:
        flat = tree.flatten(params, leaf.is_node)
        chosen = tree.select(flat, self._wanted.select)
        return {path: leading_vectors(leaf.dense(flat[path]), k) for path, i in chosen.items() if i is not None}


class _Measured:
    """What runs of one program are measured by."""

    def __init__(self, lab: Lab, member: Member, wanted: FinalUpdates, base: _Base) -> None:
        self._lab, self._wanted, self._base = lab, wanted, base
        program = method_program(member, lab.pretrained.model, lab.total_steps, target=lab.target)
        self._prepared = program.prepare(device_numbers(member.numbers, 0, lab.params)[0], lab.params)
        widths = [min(np.shape(w)[-2:]) for w in jax.tree.leaves(lab.params) if np.ndim(w) >= 2]
        sigmas = [2**i for i in range(max(widths).bit_length())]
        self._spectra = make_update_probe(
            measured_updates(wanted.select, singular_values=sigmas), program.bind, self._prepared
        )
        self._subspaces = jax.jit(_comparison(program, wanted))
        self._decompose = jax.jit(_decomposition(program, wanted))
        self._cut = make_probe(lab.measurement, lab.held_out, _truncation(program))

    def measure(self, member: Member, home: Path, cut: bool) -> dict[str, float]:
        saved = adapt.load_delta(home / "delta.safetensors", base=self._lab.pretrained.fingerprint)
        numbers, _ = device_numbers(member.numbers, member.seed, self._lab.params)
        arguments = numbers, self._prepared, saved.delta
        found = self._spectra(*arguments)
        compared = self._subspaces(*arguments, self._base.vectors(), self._base.gradient(member.seed))
        for path, numbers_of in jax.device_get(compared).items():
            for what, values in numbers_of.items():
                found |= named(what, path, values)
        return found | (dict(self._truncated(arguments)) if cut else {})

    def _truncated(self, arguments: tuple[Any, ...]) -> Iterator[tuple[str, float]]:
        svds = self._decompose(*arguments)
        widest = max((svd.s.shape[-1] for svd in svds.values()), default=0)
        for rank in [r for i, r in enumerate(self._wanted.ranks) if i == 0 or self._wanted.ranks[i - 1] < widest]:
            losses = self._cut(*arguments, svds, np.int32(rank))
            for metric, value in losses.items():
                if metric.endswith("/loss"):
                    yield f"truncated/{rank}/{metric}", value


def _comparison(program: Program, wanted: FinalUpdates) -> Callable[..., Any]:
    def compare(numbers: Any, base: Any, delta: Any, vectors: Any, gradient: Any) -> Any:
        weights = tree.flatten(base, leaf.is_node)
        changes = updates(base, program.bind(numbers, base, delta), wanted.select)
        return {
            path: subspaces(
                w := leaf.dense(weights[path]),
                update,
                vectors[path],
                gradient[path],
                min(wanted.k, *w.shape[-2:]),
                wanted.epsilons,
            )
            for path, update in changes.items()
        }

    return compare


def _decomposition(program: Program, wanted: FinalUpdates) -> Callable[..., Any]:
    def decompose(numbers: Any, base: Any, delta: Any) -> Any:
        changes = updates(base, program.bind(numbers, base, delta), wanted.select)
        return {path: singular_vectors(update) for path, update in changes.items()}

    return decompose


def _truncation(program: Program) -> Callable[..., Any]:
    """Return `(numbers, base, delta, svds, rank) -> params` with the updates of `svds` cut to a rank."""

    def bind(numbers: Any, base: Any, delta: Any, svds: Any, rank: Any) -> Any:
        weights = tree.flatten(base, leaf.is_node)

        def cut(path: str, changed: Any) -> Any:
            if path not in svds:
                return changed
            a, b = leading(svds[path], rank)
            return leaf.LowRank(weights[path], a, b, jnp.ones(a.shape[:-2], a.dtype))

        return tree.map_with_path(cut, program.bind(numbers, base, delta), is_leaf=leaf.is_node)

    return bind
