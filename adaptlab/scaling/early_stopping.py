"""The multi-power law by a descent that begins at a simpler law and stops early: an estimate that is no minimum.

Few schedules leave B, beta and gamma free to trade off, and a minimum then follows the noise of those that were fitted.
A short descent cannot go far along such a direction, so that where it begins decides: stopping early regularises.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaptlab.scaling.annealing import Exposure, annealing_points
from adaptlab.scaling.annealing_laws import immediate_law, multi_power_law
from adaptlab.scaling.check import checked
from adaptlab.scaling.fit import Fit, assemble, fit, refit
from adaptlab.scaling.form import Form, Parameter, theta_of, values_of
from adaptlab.scaling.losses import Loss, LossName, named_loss
from adaptlab.scaling.minimise import Minimum
from adaptlab.scaling.objective import Data, Space, data_of, double_precision, make_objective
from adaptlab.scaling.points import Points
from adaptlab.scaling.search import Found

__all__ = ["fit_early_stopped", "refit_early_stopped"]

_BEGIN = {"C": 1.0, "beta": 0.5, "gamma": 0.5}  # what the simpler law does not have
_RATES = {"L0": 0.05, "A": 0.05, "alpha": 0.005, "B": 0.05, "C": 0.05, "beta": 0.005, "gamma": 0.005}
_DECAY, _FLAT = 0.01, 1e-5


class _Setting(NamedTuple):
    """What is fitted to what and for how long, and the simpler law's minimum."""

    law: Form
    points: Points
    warnings: tuple[str, ...]
    loss: Loss
    updates: int
    patience: int
    simple: Fit


class _State(NamedTuple):
    """A member of the descent: where it is `(p,)`, and the best it has seen after how many updates."""

    values: Any
    moments: Any
    kept: Any
    best: Any
    kept_at: Any
    done: Any
    ended: Any


def fit_early_stopped(
    exposure: Exposure,
    points: Points | None = None,
    *,
    loss: LossName | Loss = "huber",
    delta: float = 1e-3,
    space: Space = "log",
    starts: int = 64,
    seed: int = 0,
    updates: int = 200,
    patience: int = 20,
) -> Fit:
    """Estimate the multi-power law as its authors do: a short descent from the law whose drops gain at once.

    1. L0, A, alpha and B minimise the objective of `immediate_law`, eta_max the highest learning rate of the points.
    2. From there, with C = 1 and beta = gamma = 0.5, the objective of `multi_power_law` is descended in the parameters
       themselves: AdamW (0.9, 0.999, 1e-8, decay 0.01) at a rate of 0.05 for L0, A, B and C and of 0.005 for the
       exponents, each parameter kept within its bounds.
    3. It ends after `updates` steps, after `patience` steps without a lower objective, or where the gradient's norm is
       below 1e-5. The parameters of the lowest objective met are the estimate.

    An update moves a parameter by about its rate, whatever the objective's scale. B, in the hundreds, so stays near
    what the simpler law says of it, less what the decay takes, a tenth in 200 updates; C, beta and gamma can move by
    some 10, 1 and 1.

    The rates and the beginning are the publication's and absolute: they were set for losses near 3, learning rates up
    to 3e-4 and areas S1 near 10. In other units it is another estimate; `leave_schedules_out` tells how it predicts.

    Args:
      exposure: the rows of some schedules, in some of which the learning rate falls.
      points: which of `annealing_points(exposure)` are fitted; None takes all.
      loss, delta, space: the objective, see `adaptlab.scaling.fit`; no loss with a scale of its own.
      starts, seed: of the simpler law's fit.
      updates: how many at most.
      patience: updates without a lower objective after which it ends.

    Returns:
      a `Fit` whose `minimum` is False: it predicts and has errors, but no standard errors, as those of a minimum do not
      hold elsewhere. `starts_agree` is nan, and `warnings` says where the descent ended.

    Raises:
      ValueError: no learning rate falls, the loss has a scale of its own, or the points cannot determine the law.

    Reference: arXiv:2503.12811, and the code that its authors publish. There the simpler law comes from L-BFGS-B over a
    grid of starts, and the parameters kept are those one update after the lowest objective.
    """
    at = _setting(exposure, points, loss, delta, space, starts, seed, updates, patience)
    begin_MP = _begin(at.law, at.simple.values)
    found, taken_M = _descend(at, data_of(at.points, space).weights[None], begin_MP)
    if not np.isfinite(found.objective[0]):
        where = ", ".join(f"{name} {value:.4g}" for name, value in zip(at.law.names, begin_MP[0], strict=True))
        raise ValueError(f"{at.law.name} has no finite value where the descent begins: {where}. Take fit().")
    said = (
        f"Stopped early, by design: the parameters are those after {taken_M[0]} of at most {updates} updates from a "
        "simpler law, not a minimum. They have no standard errors or intervals."
    )
    theta, nan = found.theta[0], float("nan")
    best = Found(theta, float(found.objective[0]), False, nan, np.empty((0, len(theta))))
    return assemble(at.law, at.loss, space, at.points, best, warnings=(*at.warnings, said), minimum=False)


def refit_early_stopped(
    exposure: Exposure,
    points: Points | None = None,
    *,
    weights: Any,
    loss: LossName | Loss = "huber",
    delta: float = 1e-3,
    space: Space = "log",
    starts: int = 64,
    seed: int = 0,
    updates: int = 200,
    patience: int = 20,
) -> Minimum:
    """Repeat `fit_early_stopped` under R other weightings of the points, both of its steps, as one program each.

    Args:
      weights: `(R, n)`, instead of the points' weights.
      exposure, points, loss, delta, space, starts, seed, updates, patience: see `fit_early_stopped`.

    Returns:
      `theta` `(R, p)` and so on, as `adaptlab.scaling.refit` does; none of them has converged.
    """
    at = _setting(exposure, points, loss, delta, space, starts, seed, updates, patience)
    again = refit(at.simple, weights=weights)
    with double_precision():
        simple = {name: np.asarray(v) for name, v in values_of(at.simple.form, jnp.asarray(again.theta)).items()}
    return _descend(at, np.asarray(weights, np.float64), _begin(at.law, simple))[0]


def _setting(
    exposure: Exposure,
    points: Points | None,
    loss: LossName | Loss,
    delta: float,
    space: Space,
    starts: int,
    seed: int,
    updates: int,
    patience: int,
) -> _Setting:
    """Check everything, and fit the simpler law."""
    for name, value in (("updates", updates), ("patience", patience)):
        if value < 1:
            raise ValueError(f"{name} must be 1 or more, got {value}; published are 200 updates and a patience of 20.")
    chosen, law = named_loss(loss, delta), multi_power_law(exposure)
    if chosen.free_scale:
        raise ValueError(
            f"loss {chosen.name!r} estimates a scale with the law, for which a descent has no rate. Take 'huber', "
            "'squared', 'log_cosh' or 'tukey'."
        )
    sound, warnings = checked(law, annealing_points(exposure) if points is None else points, space)
    rows = sound.x["row"].astype(int)
    lr = exposure.lr[rows[data_of(sound, space).weights > 0]]
    if np.ptp(lr) == 0:
        raise ValueError(
            f"The learning rate is {lr[0]:g} at all {len(lr)} rows: what a drop gains cannot be estimated. Fit to "
            "schedules in which it falls, or take the law of the area."
        )
    simple = fit(immediate_law(exposure, float(lr.max())), sound, loss=chosen, space=space, starts=starts, seed=seed)
    if not simple.converged:
        warnings = (*warnings, f"The fit of the simpler law, {simple.form.equation}, did not converge.")
    return _Setting(law, sound, warnings, chosen, updates, patience, simple)


def _begin(law: Form, simple: Any) -> np.ndarray:
    """`(M, p)`, the law's parameters where the descent begins."""
    columns = [np.atleast_1d(simple[name] if name in simple else _BEGIN[name]) for name in law.names]
    return np.stack(np.broadcast_arrays(*columns), axis=-1).astype(np.float64)


def _descend(at: _Setting, weights_MN: np.ndarray, begin_MP: np.ndarray) -> tuple[Minimum, np.ndarray]:
    """Descend from each beginning under weights of its own, in one program; also after how many updates it was best."""
    data, descent = data_of(at.points, at.simple.space), _make_descent(at)
    with double_precision():
        ends = jax.jit(jax.vmap(descent, (0, 0, None)))(begin_MP, weights_MN, data)
        values_MP, objective_M, taken_M = (np.asarray(one) for one in ends)
    theta_MP = theta_of(at.law, dict(zip(at.law.names, values_MP.T, strict=True)))
    return Minimum(theta_MP, objective_M, np.zeros(len(objective_M), bool)), taken_M


def _make_descent(at: _Setting) -> Any:
    """Return `(begin (p,), weights (n,), data) -> (values, objective, updates)` of one member."""
    as_they_are = at.law._replace(parameters=tuple(Parameter(p.name) for p in at.law.parameters))
    objective = make_objective(as_they_are, at.loss, at.simple.space)
    low, high, rates = np.array([(p.low, p.high, _RATES[p.name]) for p in at.law.parameters]).T
    rule = optax.chain(optax.scale_by_adam(), optax.add_decayed_weights(_DECAY))

    def descent(begin: jax.Array, weights: jax.Array, data: Data) -> tuple[jax.Array, jax.Array, jax.Array]:
        def of(values: jax.Array) -> jax.Array:
            return objective(values, data._replace(weights=weights))

        def step(s: _State) -> _State:
            now, slope = jax.value_and_grad(of)(s.values)
            with jax.numpy_dtype_promotion("standard"):  # Optax mixes integer counts with floats
                direction, moments = rule.update(slope, s.moments, s.values)
            s = _noted(s, now)
            # A slope that is not a number ends it too.
            going = (jnp.linalg.norm(slope) >= _FLAT) & (s.done - s.kept_at < at.patience)
            moved = jnp.clip(s.values - rates * direction, low, high)
            return s._replace(values=moved, moments=moments, done=s.done + 1, ended=~going)

        first = _State(begin, rule.init(begin), begin, jnp.asarray(jnp.inf), 0, 0, False)
        last = jax.lax.while_loop(lambda s: (s.done < at.updates) & ~s.ended, step, first)
        last = _noted(last, of(last.values))
        return last.kept, last.best, last.kept_at

    return descent


def _noted(s: _State, now: jax.Array) -> _State:
    """The state with its parameters kept if their objective is the lowest so far."""
    better = now < s.best
    return s._replace(
        kept=jnp.where(better, s.values, s.kept),
        best=jnp.where(better, now, s.best),
        kept_at=jnp.where(better, s.done, s.kept_at),
    )
