"""Optimisers and schedules: Optax transforms, nothing else."""

from adaptlab.optim.optimisers import adamw, sgd
from adaptlab.optim.schedules import Schedule, constant, cosine, linear

__all__ = ["Schedule", "adamw", "constant", "cosine", "linear", "sgd"]
