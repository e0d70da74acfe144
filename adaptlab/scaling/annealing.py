"""What a learning-rate schedule has done by each step, as arrays that laws of annealing read.

Both laws in `annealing_laws` are a power of the area under the learning rate less a sum over its earlier drops. The
areas are prefix sums, so what a law sums over is a list of pairs of a row and a drop before it, for all curves at once.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from adaptlab.scaling.points import Points

__all__ = ["Curve", "Drops", "Exposure", "annealing_points", "drops_of", "exposure_of", "make_curve"]

_RAMP = 16  # pieces of a warm-up before the first row


class Curve(NamedTuple):
    """One training run by increasing step.

    Attributes:
      name: of its schedule.
      step_T: the steps at which the loss was measured, behind the warm-up.
      lr_T: the learning rate at each.
      loss_T: the loss, positive.
      area_T: the sum of the learning rates of all steps so far, warm-up included, positive.
      knots: the schedule from step 0 on, `(steps, learning rates, areas)`, each `(J,)`.
    """

    name: str
    step_T: np.ndarray
    lr_T: np.ndarray
    loss_T: np.ndarray
    area_T: np.ndarray
    knots: tuple[np.ndarray, np.ndarray, np.ndarray]


class Drops(NamedTuple):
    """The K changes of a schedule's learning rate.

    Attributes:
      size_K: by how much it fell (negative where it rose).
      rate_K: the learning rate it fell to.
      area_K: the area before it.
      step_K: the step before it.
    """

    size_K: np.ndarray
    rate_K: np.ndarray
    area_K: np.ndarray
    step_K: np.ndarray


class Exposure(NamedTuple):
    """n rows of some curves, and the P pairs of a row with a drop of its schedule that was before it.

    Attributes:
      area, step, lr, loss, name: `(n,)`, of the rows; the name is the schedule's.
      row_P: which row, increasing.
      size_P: the drop's size.
      log_rate_P: the logarithm of the learning rate it fell to.
      since_P: the area since the drop.
      steps_P: the steps since the drop.
    """

    area: np.ndarray
    step: np.ndarray
    lr: np.ndarray
    loss: np.ndarray
    name: np.ndarray
    row_P: np.ndarray
    size_P: np.ndarray
    log_rate_P: np.ndarray
    since_P: np.ndarray
    steps_P: np.ndarray


def make_curve(name: str, step: np.ndarray, lr: np.ndarray, loss: np.ndarray, warmup: float | None = None) -> Curve:
    """Return a curve from rows in any order.

    Between two rows the learning rate is taken to be linear, unless it is the same before the first and after the
    second: then it changed in one step, at the second. Before the first row it is taken to rise linearly from 0 and
    then to stay. The rows of the warm-up only give the schedule: no law describes their losses.

    Args:
      name: of the schedule.
      step: the rows' steps.
      lr: their learning rates, not negative.
      loss: their losses.
      warmup: the steps of the warm-up; None takes it to last until the learning rate has ceased to rise, and to the
        first row at least.

    Raises:
      ValueError: a step that repeats, or fewer than 3 rows behind the warm-up.
    """
    order = np.argsort(step, kind="stable")
    step, lr, loss = (np.asarray(values, np.float64)[order] for values in (step, lr, loss))
    if (same := np.flatnonzero(np.diff(step) == 0)).size:
        raise ValueError(f"{name}: step {step[same[0]]:g} stands in two rows; give each run a name of its own.")
    if not len(step) or step[0] < 0 or (lr < 0).any() or not lr.any():
        raise ValueError(f"{name}: steps and learning rates must be 0 or more, and not all rates 0; got {lr[:5]}.")
    rising = np.diff(lr) > 0
    first = int(np.argmin(rising)) if rising.size and not rising.all() else 0
    ramp = step[0] if warmup is None else min(float(warmup), step[0])
    if warmup is not None:
        first = int(np.searchsorted(step, warmup))
    knot_step = np.concatenate([np.linspace(0, ramp, _RAMP, endpoint=False), [ramp][: int(ramp < step[0])], step])
    knot_lr = np.interp(knot_step, [0, ramp, step[0]], [0, lr[0], lr[0]]) if ramp > 0 else np.full(_RAMP + 1, lr[0])
    knot_lr = np.concatenate([knot_lr[: len(knot_step) - len(step)], lr])
    # The sum over the steps behind one knot, up to and with the next.
    width, change = np.diff(knot_step), np.diff(knot_lr)
    inside = knot_lr[:-1] * width + np.where(_jumps(knot_lr), change, change * (width + 1) / 2)
    knot_area = np.concatenate([[0.0], np.cumsum(inside)])
    area = knot_area[-len(step) :]
    first = max(first, int(np.searchsorted(area, 0, "right")))  # before it, no learning has happened
    if len(step) - first < 3:
        raise ValueError(f"{name}: only {max(len(step) - first, 0)} rows behind the warm-up; a curve needs 3 or more.")
    return Curve(name, step[first:], lr[first:], loss[first:], area[first:], (knot_step, knot_lr, knot_area))


def drops_of(curve: Curve, most: int = 256) -> Drops:
    """Return the changes of a curve's learning rate, `most` at most (neighbours are merged), each at its middle.

    The rise of the warm-up is among them: a negative drop, as in the sums of both papers' code.
    """
    step, lr, area = curve.knots
    size, jump = lr[:-1] - lr[1:], _jumps(lr)
    middle = (lr[:-1] + lr[1:]) / 2
    # A drop's own step counts, so what was before it ends a step earlier.
    rate = np.where(jump, lr[1:], middle)
    at_area = np.where(jump, area[1:] - lr[1:], area[:-1] + (np.diff(step) - 1) / 2 * (lr[:-1] + middle) / 2)
    at_step = np.where(jump, step[1:] - 1, (step[:-1] + step[1:] - 1) / 2)
    some = np.flatnonzero(size)
    parts = np.array_split(some, min(len(some), most)) if len(some) else []

    def mean(values: np.ndarray) -> np.ndarray:
        return np.array([np.average(values[i], weights=np.abs(size[i])) for i in parts])

    return Drops(np.array([size[i].sum() for i in parts]), mean(rate), mean(at_area), mean(at_step))


def exposure_of(curves: Sequence[Curve], *, most_drops: int = 256, most_rows: int | None = None) -> Exposure:
    """Return what the schedules of some curves have done by each of their rows.

    Args:
      curves: from `make_curve`.
      most_drops: see `drops_of`.
      most_rows: of a curve with more rows, so many are taken, evenly spread; None takes all.
    """
    parts, rows_so_far = [], 0
    for curve in curves:
        drops, n = drops_of(curve, most_drops), len(curve.step_T)
        rows = np.unique(np.linspace(0, n - 1, min(n, most_rows or n)).round().astype(int))
        since_RK = curve.area_T[rows, None] - drops.area_K
        row_P, drop_P = np.nonzero(since_RK > 0)
        floor = 1e-12 * curve.lr_T.max()  # where the learning rate is 0 nothing is learnt, and no area grows
        pairs = {
            "row_P": row_P + rows_so_far,
            "size_P": drops.size_K[drop_P],
            "log_rate_P": np.log(np.maximum(drops.rate_K, floor))[drop_P],
            "since_P": since_RK[row_P, drop_P],
            "steps_P": (curve.step_T[rows, None] - drops.step_K)[row_P, drop_P],
        }
        own = {"area": curve.area_T, "step": curve.step_T, "lr": curve.lr_T, "loss": curve.loss_T}
        kept = {name: values[rows] for name, values in own.items()}
        parts.append({**kept, "name": np.full(len(rows), curve.name, object), **pairs})
        rows_so_far += len(rows)
    return Exposure(**{name: np.concatenate([part[name] for part in parts]) for name in Exposure._fields})


def annealing_points(exposure: Exposure) -> Points:
    """Return the rows as points: y is the loss, the runs are the schedules, x is the area and the number of the row."""
    rows = np.arange(len(exposure.loss), dtype=np.float64)
    return Points({"area": exposure.area, "row": rows}, exposure.loss, runs=exposure.name)


def _jumps(lr_T: np.ndarray) -> np.ndarray:
    """Which intervals between rows hold a change in one step: the learning rate is constant on both sides of them."""
    change = np.diff(lr_T) != 0
    around = np.concatenate([[False], change, [False]])
    return change & ~around[:-2] & ~around[2:]
