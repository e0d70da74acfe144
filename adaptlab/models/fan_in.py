"""Random weights that are as large as their width asks for."""

import math
from typing import Any

import jax

from adaptlab import tree
from adaptlab.models.layers import INIT_STD
from adaptlab.models.model import Model

__all__ = ["by_fan_in"]


def by_fan_in(model: Model) -> Model:
    """Return the model with matrices W `[…, F_in, F_out]` that keep the size of what they multiply.

        W_ij ~ N(0, 1 / F_in)     (LeCun et al., Efficient BackProp, 1998, section 4.6)

    A table of embeddings `[V, D]` is drawn as the head that it is where it is tied: F_in is D. Biases and scales are
    what they were. Models draw their matrices with a standard deviation of 0.02 otherwise, which is 1 / sqrt(F_in) at a
    width of 2,500 and far below it at one of 32.
    """

    def scaled(path: str, x: Any) -> Any:
        name = path.rpartition("/")[2]
        if name not in ("kernel", "router", "embedding"):
            return x
        return x / (INIT_STD * math.sqrt(x.shape[-1 if name == "embedding" else -2]))

    def init(key: jax.Array) -> Any:
        return tree.map_with_path(scaled, model.init(key))

    return model._replace(init=init)
