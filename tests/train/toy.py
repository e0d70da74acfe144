"""The smallest thing that trains: a linear model, whose gradient is known, with the parts a run needs around it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab.adapt import full
from adaptlab.optim import adamw
from adaptlab.stats import Mean
from adaptlab.train import Checkpoints, Program, Run, Writer, make_program


class Points(NamedTuple):
    x: Any
    y: Any
    weights: Any


BASE = {"w": jnp.asarray([0.5, -1.0, 2.0])}


def points(step: int, rows: int = 8) -> Points:
    rng = np.random.default_rng(step)
    x = rng.normal(size=(rows, 3)).astype(np.float32)
    weights = rng.integers(0, 5, rows).astype(np.float32)
    return jax.device_put(Points(x, x.sum(1), weights))


def squares(params: Any, batch: Points, key: jax.Array) -> Mean:
    error = batch.x @ params["w"] - batch.y
    return Mean(jnp.sum(batch.weights * jnp.square(error)), jnp.sum(batch.weights))


def program(**options: Any) -> Program:
    return make_program(
        lambda numbers: squares,
        lambda numbers: full(),
        lambda numbers: adamw(numbers["lr"], total_steps=9),
        **options,
    )


def probe(numbers: Any, base: Any, delta: Any) -> dict[str, float]:
    return {"held_out/norm": float(jax.device_get(jnp.linalg.norm(delta["w"])))}


def run(**changes: Any) -> Run:
    parts = {
        "program": program(),
        "numbers": {"lr": 0.05},
        "seed": 3,
        "base": BASE,
        "batches": points,
        "probe": probe,
        "total_steps": 6,
        "measure_every": 2,
        "save_every": 2,
    }
    return Run(**(parts | changes))


Journal = dict[tuple[int, str], float]


def into(journal: Journal) -> Callable[[int], Writer]:
    """Return an `open_writer` that drops later rows, as the journal on disk does, and refuses to write a row twice."""

    def open_writer(start: int) -> Writer:
        for row in [row for row in journal if row[0] >= start]:
            del journal[row]

        def write(step: int, metrics: dict[str, float]) -> None:
            for name, value in metrics.items():
                assert (step, name) not in journal
                journal[step, name] = value

        return Writer(write, lambda: None)

    return open_writer


NOWHERE = Checkpoints(save=lambda state: None, restore=lambda like: None, close=lambda: None)
