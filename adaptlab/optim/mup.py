"""Maximal update parametrisation: how rates follow width, and the check that activations do not."""

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaptlab import tree
from adaptlab.config import Traced
from adaptlab.optim.group_rules import everywhere, is_vector
from adaptlab.optim.groups import Groups

__all__ = ["CoordinateCheck", "WidthTrial", "coordinate_check", "mup", "mup_from_shapes"]

PyTree = Any
Head = Literal["rate", "multiplier"]

_INPUT = r"(?:.*/)?[^/]*embed[^/]*/.*"
_OUTPUT = r"(?:.*/)?head/.*"


def mup(
    base_width: Traced,
    *,
    width: int | None = None,
    input: str | Sequence[str] | None = None,
    output: str | Sequence[str] | None = None,
    head: Head = "rate",
    independent_decay: bool = True,
) -> Groups:
    """The learning rates of muP for Adam, for a model with one width (arXiv:2203.03466, tables 3 and 8).

    With n the width over the base width, the rate of

        hidden matrices      1 / n
        the output matrix    1 / n, or 1 where the model multiplies its output by 1 / n
        input matrices, biases and the gains of norms      1

    so that a rate tuned at the base width holds at every width. What counts is whether the fan-in grows with the
    width: LoRA's A `[D, R]` takes 1 / n and its B `[R, F]` takes 1 (as in LoRA+, arXiv:2402.12354). Initial weights are
    the model's business (`mlp(…, base_width=…)`): a pretrained model has its own. So is attention: 1 / K in place of
    1 / √K (definition 4.1) matters only where the width of a head grows; with more heads of one width nothing changes.

    Args:
      base_width: the width at which all rates are 1.
      width: the model's. By default the commonest fan-in of the hidden and output matrices of delta; give it when
        delta has few of them.
      input: patterns of the matrices whose fan-in does not grow; by default what has `embed` in its name. A tied
        embedding is one of them.
      output: patterns of the output matrices; by default those under `head`.
      head: "rate" (table 3: no multiplier, as pretrained models are) or "multiplier" (table 8).
      independent_decay: multiply decays by n where rates are divided by it, so that rate · decay keeps the same
        strength at every width.

    Raises:
      ValueError: an unknown `head`; when resolved on a delta, if a pattern that was given matches nothing, or if it
        has no matrix to read the width from.
    """

    def rate(delta: PyTree) -> PyTree:
        flat = tree.flatten(delta)
        entering, leaving = _claimed(flat, input, _INPUT), _claimed(flat, output, _OUTPUT)
        matrices = {p for p, x in flat.items() if re.search("(^|/)kernel(/a)?$", p) and len(x.shape) > 1} - entering
        wide = width or _commonest(flat[path].shape[-2] for path in sorted(matrices))
        if matrices and wide is None:
            raise ValueError(f"mup: no width to be read off {list(flat)}; give `width`.")
        scaled = matrices - leaving if head == "multiplier" else matrices
        return tree.map_with_path(lambda p, _: _ratio(base_width, wide) if p in scaled else _one(), delta)

    return _groups(rate, head, independent_decay)


def mup_from_shapes(base: PyTree, *, head: Head = "rate", independent_decay: bool = True) -> Groups:
    """The learning rates of muP for Adam, from the shapes of the same delta on the base model.

    A matrix takes fan-in(base) / fan-in, so that every width may grow by its own factor, and names do not matter.

    Args:
      base: the delta of the base model, or its shapes.
      head: see `mup`; the output matrices are those whose fan-in grows and whose fan-out does not.
      independent_decay: see `mup`.

    Raises:
      ValueError: an unknown `head`; when resolved on a delta with other paths or ranks than `base`.
    """
    shapes = {path: x.shape for path, x in tree.flatten(base).items()}

    def one(path: str, x: Any) -> Any:
        if len(x.shape) != len(shapes[path]):
            raise ValueError(f"mup_from_shapes: {path} is {x.shape}, but {shapes[path]} in the base.")
        if len(x.shape) < 2 or is_vector(path):
            return _one()
        (fan_in, fan_out), (base_in, base_out) = x.shape[-2:], shapes[path][-2:]
        is_output = fan_in != base_in and fan_out == base_out
        return _one() if is_output and head == "multiplier" else _ratio(base_in, fan_in)

    def rate(delta: PyTree) -> PyTree:
        if odd := sorted(shapes.keys() ^ tree.flatten(delta).keys()):
            raise ValueError(f"mup_from_shapes: {odd} are in one of delta and its base only; give the same adaptation.")
        return tree.map_with_path(one, delta)

    return _groups(rate, head, independent_decay)


def _groups(rate: Callable[[PyTree], PyTree], head: str, independent_decay: bool) -> Groups:
    if head not in ("rate", "multiplier"):
        raise ValueError(f"head={head!r} is not one of ['rate', 'multiplier'].")
    if not independent_decay:
        return everywhere()._replace(rate=rate)
    return everywhere()._replace(rate=rate, decay=lambda delta: jax.tree.map(lambda r: _one() / r, rate(delta)))


def _claimed(flat: dict[str, Any], patterns: str | Sequence[str] | None, usual: str) -> set[str]:
    if patterns is None:
        return {path for path in flat if re.fullmatch(usual, path)}
    return {path for path, i in tree.select(flat, patterns).items() if i is not None}


def _commonest(sizes: Any) -> int | None:
    values, counts = np.unique(list(sizes), return_counts=True)
    return int(values[counts.argmax()]) if values.size else None


def _one() -> np.ndarray:
    return np.ones((), np.float32)


def _ratio(base: Any, size: Any) -> Any:
    if isinstance(base, jax.Array):
        return base.astype(jnp.float32) / float(size)
    return np.asarray(base / size, np.float32)


class WidthTrial(NamedTuple):
    """What a coordinate check runs at one width.

    Attributes:
      init: `key -> params`.
      loss: `params -> scalar`, on one fixed batch.
      activations: `params -> {name: array}`, on that batch.
      optimizer: an Optax transform.
    """

    init: Callable[[Any], PyTree]
    loss: Callable[[PyTree], jax.Array]
    activations: Callable[[PyTree], dict[str, jax.Array]]
    optimizer: optax.GradientTransformation


class CoordinateCheck(NamedTuple):
    """How large activations are at each width.

    Attributes:
      widths: `[W]`.
      size: `{name: [W, steps + 1]}`, the mean of |x| over the elements and seeds, before and after each update.
      slope: `{name: [steps + 1]}`, the exponent p of size ∝ widthᵖ by least squares on logarithms; NaN where a size is
        zero or not finite.
    """

    widths: np.ndarray
    size: dict[str, np.ndarray]
    slope: dict[str, np.ndarray]


def coordinate_check(
    make: Callable[[int], WidthTrial], widths: Sequence[int], *, steps: int = 4, seeds: int = 1
) -> CoordinateCheck:
    """Train a few steps at each width and fit how the activations grow with it (arXiv:2203.03466, app. D.1).

    In muP no activation grows with width after any number of steps: slopes are at most about 0. In the standard
    parametrisation they do once weights have moved. (The output may shrink: its initial part vanishes as 1/√n.)

    Args:
      make: `width -> WidthTrial`, the same model otherwise.
      widths: at least two.
      steps: updates.
      seeds: initialisations to average over.
    """
    if len(widths) < 2:
        raise ValueError(f"coordinate_check needs at least two widths to fit a slope, not {list(widths)}.")
    keys = jax.vmap(jax.random.key)(jnp.arange(seeds))
    runs = [jax.device_get(jax.jit(jax.vmap(_sizes(make(width), steps)))(keys)) for width in widths]
    size = {name: np.stack([run[name].mean(axis=0) for run in runs]) for name in runs[0]}
    return CoordinateCheck(np.asarray(widths), size, {name: _slopes(widths, x) for name, x in size.items()})


def _sizes(trial: WidthTrial, steps: int) -> Callable[[Any], dict[str, jax.Array]]:
    """Return `key -> {name: [steps + 1]}`."""

    def sizes(params: PyTree) -> dict[str, jax.Array]:
        return {name: jnp.mean(jnp.abs(x)) for name, x in trial.activations(params).items()}

    def run(key: Any) -> dict[str, jax.Array]:
        def step(carry: Any, _: None) -> Any:
            params, state = carry
            updates, state = trial.optimizer.update(jax.grad(trial.loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), sizes(params)

        params = trial.init(key)
        (params, _), before = jax.lax.scan(step, (params, trial.optimizer.init(params)), None, length=steps)
        return {name: jnp.append(x, sizes(params)[name]) for name, x in before.items()}

    return run


def _slopes(widths: Sequence[int], size: np.ndarray) -> np.ndarray:
    good = (size > 0).all(axis=0) & np.isfinite(size).all(axis=0)
    log_size = np.log(np.where(good, size, 1.0))
    log_width = np.log(np.asarray(widths, np.float64))
    centred = (log_width - log_width.mean())[:, None]
    return np.where(good, (centred * log_size).sum(axis=0) / np.square(centred).sum(), np.nan)
