"""Optimisers and schedules: Optax transforms, nothing else."""

from adaptlab.optim.adafactor import adafactor
from adaptlab.optim.adalora import adalora, allocate_ranks
from adaptlab.optim.carry import carry, load_moments, save_moments
from adaptlab.optim.cycles import (
    cosine_restarts,
    cyclic,
    cyclic_momentum,
    one_cycle,
    one_cycle_momentum,
    range_test,
    slanted_triangular,
)
from adaptlab.optim.muon import muon
from adaptlab.optim.optimisers import adamw, lion, sgd
from adaptlab.optim.schedule_free import averages, eval_params, schedule_free_adamw, schedule_free_sgd
from adaptlab.optim.schedules import (
    Schedule,
    constant,
    cosine,
    exponential,
    inverse_sqrt,
    linear,
    polynomial,
    step_decay,
    wsd,
)

__all__ = [
    "Schedule",
    "adafactor",
    "adalora",
    "adamw",
    "allocate_ranks",
    "averages",
    "carry",
    "constant",
    "cosine",
    "cosine_restarts",
    "cyclic",
    "cyclic_momentum",
    "eval_params",
    "exponential",
    "inverse_sqrt",
    "linear",
    "lion",
    "load_moments",
    "muon",
    "one_cycle",
    "one_cycle_momentum",
    "polynomial",
    "range_test",
    "save_moments",
    "schedule_free_adamw",
    "schedule_free_sgd",
    "sgd",
    "slanted_triangular",
    "step_decay",
    "wsd",
]
