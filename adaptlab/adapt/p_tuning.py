"""P-tuning: a prompt made by a small network."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from adaptlab import leaf
from adaptlab.adapt.adaptation import Adaptation
from adaptlab.adapt.lora import fan_in_uniform, zeros
from adaptlab.adapt.slots import Part, below, bind_slots, choose_slots, init_parts, normal, part_axes
from adaptlab.config import GIVEN

__all__ = ["p_tuning"]

ENCODERS = ("mlp", "lstm")


def p_tuning(
    length: int = 16,
    *,
    width: int | None = None,
    encoder: Literal["mlp", "lstm"] = "mlp",
    layers: int = 2,
    slots: Annotated[Mapping[str, Any], GIVEN],
) -> Adaptation:
    """A prompt [h_1 … h_P] in front of every sequence that a network makes of a table E `[P, D]` (arXiv:2103.10385).

    "lstm" is the paper's: h = MLP([→LSTM(E); ←LSTM(E)]), with two linear maps and a ReLU between them after a
    bidirectional LSTM. "mlp" is three linear maps with ReLUs between them, the default of PEFT. With hidden width W the
    second trains P D + 2 W D + W² + 2 W + D parameters; the first trains P D + 4 W² + 2 W + 2 W D + D and an LSTM's
    8 W (I + W + 1) a layer (I = D in the first, 2 W above).

    It does not start as the base (see `prompt`), and E and the maps start at random.

    Args:
      length: P, the number of positions.
      width: W; None takes D.
      encoder: what makes the prompt.
      layers: of the LSTM.
      slots: what the model declares.

    Raises:
      ValueError: a length, width or number of layers below 1, an unknown encoder, or a model without a prompt slot.
    """
    if min(length, layers, 1 if width is None else width) < 1:
        raise ValueError(f"length={length}, width={width} and layers={layers} must each be at least 1.")
    if encoder not in ENCODERS:
        raise ValueError(f"encoder={encoder!r} is not one of {list(ENCODERS)}.")
    ((path, slot),) = choose_slots(slots, "prompt", ".*", "p_tuning").items()
    (d,), (d_axis,) = slot.shape, slot.axes
    hidden = width or d
    table = {f"{path}/table": Part((length, d), (None, d_axis), normal())}
    recurrent = _lstm_parts(path, d, hidden, layers) if encoder == "lstm" else {}
    sizes = (2 * hidden, 2 * hidden, d) if encoder == "lstm" else (d, hidden, hidden, d)
    parts = table | recurrent | _dense_parts(path, sizes)

    def bind(base: Any, delta: Any) -> Any:
        own = below(delta, path)
        x = own["table"]
        for i in range(layers if encoder == "lstm" else 0):
            x = jnp.concatenate([_lstm(x, own[f"forward_{i}"]), _lstm(x, own[f"backward_{i}"], reverse=True)], axis=-1)
        for i in range(len(sizes) - 1):
            x = leaf.product(x if i == 0 else jax.nn.relu(x), own[f"dense_{i}"]["kernel"])
            x = x + own[f"dense_{i}"]["bias"][None]
        return bind_slots(base, {path: leaf.Prompt(x)})

    return Adaptation(lambda key, base: init_parts(key, parts), bind, lambda base_axes: part_axes(parts))


def _dense_parts(path: str, sizes: tuple[int, ...]) -> dict[str, Part]:
    parts = {}
    for i, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        parts[f"{path}/dense_{i}/kernel"] = Part((fan_in, fan_out), (None, None), fan_in_uniform())
        parts[f"{path}/dense_{i}/bias"] = Part((fan_out,), (None,), zeros())
    return parts


def _lstm_parts(path: str, d: int, width: int, layers: int) -> dict[str, Part]:
    parts = {}
    for i in range(layers):
        for direction in ("forward", "backward"):
            name, fan_in = f"{path}/{direction}_{i}", d if i == 0 else 2 * width
            parts[f"{name}/kernel"] = Part((fan_in, 4 * width), (None, None), fan_in_uniform())
            parts[f"{name}/recurrent"] = Part((width, 4 * width), (None, None), fan_in_uniform())
            parts[f"{name}/bias"] = Part((4 * width,), (None,), zeros())
    return parts


def _lstm(x_PI: jax.Array, weights: Mapping[str, jax.Array], reverse: bool = False) -> jax.Array:
    """The outputs `[P, W]` of an LSTM from a zero state; columns are the gates input, forget, cell, output."""
    inputs = leaf.product(x_PI, weights["kernel"]) + weights["bias"][None]

    def step(state: tuple[jax.Array, jax.Array], row: jax.Array) -> Any:
        h, c = state
        i, f, g, o = jnp.split(row + leaf.product(h, weights["recurrent"]), 4)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    start = jnp.zeros(weights["recurrent"].shape[0], x_PI.dtype)
    return lax.scan(step, (start, start), inputs, reverse=reverse)[1]
