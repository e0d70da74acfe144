"""Studies with a known answer: gain, forgetting, speed and best rate of each arm are planted."""

import math
from typing import NamedTuple

import numpy as np

from adaptlab.report.curves import make_curves

TARGET, UPSTREAM = "target", ["news", "code"]
RATES = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3)
STEPS = np.arange(0, 101, 5)


class Arm(NamedTuple):
    """What is planted in one method.

    Attributes:
      peak: the best learning rate.
      fall: the decades over which the final gain falls to zero, as the parabola 1 - (log10(r / peak) / fall)^2.
      forgets: nats forgotten per nat gained.
      speed: how many time constants of the gain there are in a run.
      cliff: a bump of forgetting around a tenth of the run.
      wobble: the spread of what it forgets over seeds, beyond what all arms share.
      noise: the spread of each run's final gain.
      rates: the learning rates tried.
      seeds: its seeds.
      lost: (rate, seed) of the runs that diverge half-way.
    """

    peak: float = 1e-4
    fall: float = 2.0
    forgets: float = 0.2
    speed: float = 3.0
    cliff: float = 0.0
    wobble: float = 0.01
    noise: float = 0.01
    rates: tuple[float, ...] = RATES
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    lost: tuple[tuple[float, int], ...] = ()


def plant(arms, cut=False):
    """Return (curves, runs) of `{name: Arm}`; lost runs go on as nan, or are not measured any more if `cut`."""
    rows, runs = [], {}
    for i, (name, arm) in enumerate(arms.items()):
        for rate in arm.rates:
            for seed in arm.seeds:
                run = f"{name}/lr_{rate:g}/seed_{seed}"
                lost = (rate, seed) in arm.lost
                runs[run] = {
                    "method": name,
                    "lr": rate,
                    "seed": seed,
                    "diverged_at": 50 if lost else None,
                    "steps": 100,
                }
                for domain, loss_N in _losses(arm, rate, seed, i).items():
                    loss_N = np.where((STEPS > 50) & lost, math.nan, loss_N)
                    end = 11 if lost and cut else len(STEPS)
                    measured = zip(STEPS.tolist()[:end], loss_N[:end], strict=True)
                    rows += [(run, s, f"held_out/{domain}/loss", v) for s, v in measured]
    return make_curves(rows), runs


def _losses(arm, rate, seed, i):
    shared, own = np.random.default_rng([7, seed]), np.random.default_rng([8, seed, i])
    alone = np.random.default_rng([9, seed, i, round(100 * math.log10(rate) + 1000)])
    final = (1 + 0.05 * shared.standard_normal()) * (1 - (math.log10(rate / arm.peak) / arm.fall) ** 2)
    final += arm.noise * alone.standard_normal()
    speed = arm.speed * math.exp(0.02 * own.standard_normal())
    gain_N = final * (1 - np.exp(-speed * STEPS / STEPS[-1])) / (1 - math.exp(-speed))
    slope = arm.forgets * (1 + 0.2 * shared.standard_normal()) + arm.wobble * own.standard_normal()
    cliff_N = arm.cliff * (1 + 0.1 * own.standard_normal()) * np.exp(-(((STEPS - 10) / 5) ** 2)) * (STEPS > 0)
    change_N = slope * gain_N + cliff_N
    return {TARGET: 4.0 - gain_N, "news": 3.0 + 1.5 * change_N, "code": 2.0 + 0.5 * change_N}
