"""Compute-optimal allocation under a fitted law: where a budget goes, and what another choice costs."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from adaptlab.scaling.fit import Fit, predict
from adaptlab.scaling.form import Form

__all__ = [
    "Allocation",
    "Cost",
    "Deviation",
    "Marginal",
    "allocate",
    "chinchilla_optimum",
    "deviate",
    "marginal",
    "training_flops",
]

Cost = Callable[[Mapping[str, np.ndarray]], np.ndarray]
"""`{input: array} -> compute`, increasing in each of the two inputs that a budget is divided between."""

_REACH = 70.0  # nats searched to each side of the even split: thirty orders of magnitude


class Allocation(NamedTuple):
    """The best use of each of k budgets.

    Attributes:
      budget: (k,), in the unit of the cost.
      inputs: `{input: (k,)}`, the two that share the budget, at the optimum.
      loss: (k,), the law's value there.
      exponents: `{input: (k,)}`, d log(input) / d log(budget) along the frontier, at each budget.
    """

    budget: np.ndarray
    inputs: dict[str, np.ndarray]
    loss: np.ndarray
    exponents: dict[str, np.ndarray]


class Deviation(NamedTuple):
    """What it costs to use `ratio` times the best value of the first input.

    Attributes:
      ratio: (r,).
      extra_loss: (r,), loss above the optimum's at the same budget.
      extra_compute: (r,), the fraction of the budget to be added until the optimum's loss is reached with that value
        of the first input; inf where no amount of the second input gets there.
    """

    ratio: np.ndarray
    extra_loss: np.ndarray
    extra_compute: np.ndarray


class Marginal(NamedTuple):
    """What a little more of each input is worth at one point.

    Attributes:
      loss: the law's value.
      derivative: `{input: d loss / d input}`.
      elasticity: `{input: d log(loss) / d log(input)}`.
      doubling: `{input: loss(2 x input) - loss}`, not linearised.
    """

    loss: float
    derivative: dict[str, float]
    elasticity: dict[str, float]
    doubling: dict[str, float]


def training_flops(x: Mapping[str, np.ndarray]) -> np.ndarray:
    """C = 6 N D, the usual count of a dense transformer's training (arXiv:2001.08361)."""
    return 6.0 * x["N"] * x["D"]


def chinchilla_optimum(values: Mapping[str, float], budget: np.ndarray | float) -> dict[str, np.ndarray]:
    """The optimum of L = E + A / N^alpha + B / D^beta on 6 N D = C (as arXiv:2203.15556).

        N = G (C / 6)^a,   D = G^-1 (C / 6)^b,   G = (alpha A / (beta B))^(1 / (alpha + beta))
        a = beta / (alpha + beta),   b = alpha / (alpha + beta)

    Args:
      values: with A, B, alpha and beta; any other is ignored.
      budget: C, in FLOPs where N are parameters and D tokens.

    >>> best = chinchilla_optimum({"A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}, 5.76e23)
    >>> f"{best['N']:.3g} parameters, {best['D']:.3g} tokens"
    '3.22e+10 parameters, 2.98e+12 tokens'
    """
    alpha, beta = values["alpha"], values["beta"]
    g = (alpha * values["A"] / (beta * values["B"])) ** (1 / (alpha + beta))
    share = np.asarray(budget, np.float64) / 6
    return {"N": g * share ** (beta / (alpha + beta)), "D": share ** (alpha / (alpha + beta)) / g}


def allocate(
    fit: Fit,
    budgets: Sequence[float] | np.ndarray,
    *,
    over: tuple[str, str] = ("N", "D"),
    cost: Cost = training_flops,
    held: Mapping[str, float] | None = None,
) -> Allocation:
    """Divide budgets between two inputs so that the fitted loss is least, for any form and any cost.

        x* = argmin_x f(x; theta)   subject to   cost(x) = C

    The curve of equal cost is walked in the logarithm of the first input, the second solved for by bisection. A grid of
    thirty orders of magnitude to each side of the even split is narrowed around its least loss to three nodes 1e-4
    apart, whose parabola's vertex is the optimum, good to about 1e-7.

    Args:
      fit: a fitted law of both inputs.
      budgets: (k,), positive.
      over: the two inputs that share the budget.
      cost: compute as a function of the inputs; `training_flops` is 6 N D.
      held: values of the form's other inputs, such as `{"rank": 8}`.

    Raises:
      ValueError: a wrong name, a budget that is not positive, or a law without an optimum inside the search, which
        says that it gains from one input alone at any scale.
    """
    budget, fixed = _checked(fit.form, budgets, over, held)
    inputs = _optimum(fit, budget, over, cost, fixed)
    step = 0.05  # nats: the exponent's error is of its square
    up, down = (_optimum(fit, budget * math.exp(s), over, cost, fixed) for s in (step, -step))
    exponents = {name: np.log(up[name] / down[name]) / (2 * step) for name in over}
    return Allocation(budget, inputs, predict(fit, inputs | _spread(fixed, budget)), exponents)


def deviate(
    fit: Fit,
    budget: float,
    ratios: Sequence[float] | np.ndarray = (0.25, 0.5, 1.0, 2.0, 4.0),
    *,
    over: tuple[str, str] = ("N", "D"),
    cost: Cost = training_flops,
    held: Mapping[str, float] | None = None,
) -> Deviation:
    """Price other values of the first input than the best: at the same budget in loss, at the same loss in compute.

    For instance, how much longer must a model half as large be trained to be as good, and what does that cost?

    Args:
      fit, over, cost, held: as for `allocate`.
      budget: one budget.
      ratios: (r,), the first input over its best value.
    """
    best = allocate(fit, [budget], over=over, cost=cost, held=held)
    ratio = np.asarray(ratios, np.float64)
    if ratio.ndim != 1 or not (ratio > 0).all():
        raise ValueError(f"ratios must be positive numbers, got {ratios}; 1 is the optimum.")
    fixed = dict(held or {})
    first = ratio * best.inputs[over[0]]
    same = _complete(first, np.full_like(ratio, budget), over, cost, fixed)
    loss = predict(fit, same | _spread(fixed, ratio))

    def reached(log_second: np.ndarray) -> np.ndarray:
        x = {over[0]: first, over[1]: np.exp(log_second)} | _spread(fixed, ratio)
        return best.loss - predict(fit, x)

    centre = math.log(best.inputs[over[1]][0])
    second = _bisect(reached, centre - _REACH, centre + _REACH, ratio.shape)
    compute = cost({over[0]: first, over[1]: np.exp(second)} | _spread(fixed, ratio))
    unreachable = reached(np.full_like(ratio, centre + _REACH)) < 0
    return Deviation(ratio, loss - best.loss, np.where(unreachable, np.inf, compute / budget - 1))


def marginal(fit: Fit, x: Mapping[str, float]) -> Marginal:
    """Say what a little more of each input is worth at x: data against parameters against rank.

        derivative = df/dx_i,   elasticity = d log f / d log x_i,   doubling = f(.., 2 x_i, ..) - f(x)

    On the compute-optimal frontier of a cost like 6 N D the elasticities of N and D are equal: neither is worth more
    per FLOP.

    Args:
      fit: a fitted law.
      x: one value for each input of the form.
    """
    _covers(fit.form, x)
    step = 1e-5  # in log x: central differences are then good to about 1e-10 of the loss
    names = list(fit.form.inputs)
    rows = [dict(x)]
    for name in names:
        rows += [dict(x) | {name: x[name] * factor} for factor in (math.exp(step), math.exp(-step), 2.0)]
    loss = predict(fit, {name: np.array([row[name] for row in rows]) for name in names})
    here, up, down, double = loss[0], loss[1::3], loss[2::3], loss[3::3]
    slope = (up - down) / (2 * step)
    return Marginal(
        loss=float(here),
        derivative={name: float(s / x[name]) for name, s in zip(names, slope, strict=True)},
        elasticity={name: float(s / here) for name, s in zip(names, slope, strict=True)},
        doubling={name: float(d - here) for name, d in zip(names, double, strict=True)},
    )


def _optimum(
    fit: Fit, budget: np.ndarray, over: tuple[str, str], cost: Cost, fixed: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Narrow a grid in the log of the first input around the least loss at equal cost; (k,) each."""
    even = _bisect(lambda s: cost(dict.fromkeys(over, np.exp(s)) | _spread(fixed, s)) - budget, -200, 200, budget.shape)
    half, nodes, centre = _REACH, 481, even  # a first spacing under a third of a nat steps over no valley
    while True:
        spacing = 2 * half / (nodes - 1)
        log_first = centre[:, None] + np.linspace(-half, half, nodes)
        flat = np.exp(log_first.ravel())
        x = _complete(flat, np.repeat(budget, nodes), over, cost, fixed)
        loss = predict(fit, x | _spread(fixed, flat)).reshape(log_first.shape)
        if nodes == 3:
            left, here, right = loss.T
            vertex = centre + spacing * (left - right) / (2 * (left - 2 * here + right))
            return _complete(np.exp(vertex), budget, over, cost, fixed)
        best = np.argmin(np.where(np.isfinite(loss), loss, np.inf), axis=1)
        if half == _REACH:
            _interior(best, nodes, budget, over)
        centre = np.take_along_axis(log_first, best[:, None], axis=1)[:, 0]
        half, nodes = (2 * spacing, 21) if spacing > 1e-4 else (1e-4, 3)


def _interior(best: np.ndarray, nodes: int, budget: np.ndarray, over: tuple[str, str]) -> None:
    for edge, more in ((0, over[1]), (nodes - 1, over[0])):
        if (best == edge).any():
            raise ValueError(
                f"At a budget of {budget[best == edge][0]:.4g} the fitted law has no optimum between {over[0]} and "
                f"{over[1]}: its loss falls as long as {more} grows at the other's expense. The law may not trade "
                "them off, or the fit may have set one exponent to zero; see its diagnosis."
            )


def _complete(
    first: np.ndarray, budget: np.ndarray, over: tuple[str, str], cost: Cost, fixed: Mapping[str, float]
) -> dict[str, np.ndarray]:
    """Return both inputs, the second such that the cost is the budget."""

    def excess(log_second: np.ndarray) -> np.ndarray:
        return cost({over[0]: first, over[1]: np.exp(log_second)} | _spread(fixed, first)) - budget

    return {over[0]: first, over[1]: np.exp(_bisect(excess, -300, 300, first.shape))}


def _bisect(rising: Callable[[np.ndarray], np.ndarray], low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
    """Return where a rising function crosses zero, elementwise, to the last bit of [low, high]."""
    a, b = np.full(shape, float(low)), np.full(shape, float(high))
    for _ in range(64):
        middle = 0.5 * (a + b)
        under = rising(middle) < 0
        a, b = np.where(under, middle, a), np.where(under, b, middle)
    return 0.5 * (a + b)


def _spread(fixed: Mapping[str, float], like: np.ndarray) -> dict[str, np.ndarray]:
    return {name: np.full(like.shape, float(value)) for name, value in fixed.items()}


def _checked(
    form: Form, budgets: Sequence[float] | np.ndarray, over: tuple[str, str], held: Mapping[str, float] | None
) -> tuple[np.ndarray, dict[str, float]]:
    budget = np.asarray(budgets, np.float64)
    if budget.ndim != 1 or not len(budget) or not (np.isfinite(budget) & (budget > 0)).all():
        raise ValueError(f"budgets must be a list of positive numbers, got {budgets}.")
    _covers(form, dict.fromkeys(over, 1.0) | dict(held or {}))
    if len(set(over)) != 2:
        raise ValueError(f"over must name two different inputs, got {over}; choose from {', '.join(form.inputs)}.")
    return budget, dict(held or {})


def _covers(form: Form, x: Mapping[str, float]) -> None:
    if missing := [name for name in form.inputs if name not in x]:
        raise ValueError(f"The form {form.name} also needs {', '.join(missing)}: give each a value (held=).")
    if unknown := [name for name in x if name not in form.inputs]:
        raise ValueError(f"The form {form.name} has no input {unknown[0]!r}; it has {', '.join(form.inputs)}.")
