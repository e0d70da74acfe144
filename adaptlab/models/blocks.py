"""The two sub-layers that BERT and GPT-2 have in common, with biases everywhere, and the slots of a stack of layers."""

from typing import Any

import jax
from flax import linen as nn

from adaptlab.models.attention import attend, attention_weights
from adaptlab.models.intermediates import record
from adaptlab.models.layers import ACTIVATIONS, Linear
from adaptlab.models.model import Slot
from adaptlab.models.products import fan_out, split_heads
from adaptlab.models.reading import slot

__all__ = ["FeedForward", "SelfAttention", "check_sizes", "slots_of"]


class SelfAttention(nn.Module):
    """Multi-head attention (arXiv:1706.03762, sec. 3.2.2) with biases; H heads of width D / H.

    `asking`, `[B, t, D]`, are the tokens whose queries are answered, and the mask's rows are theirs; None asks for all.
    """

    heads: int

    @nn.compact
    def __call__(self, x_BTD: jax.Array, mask: Any, asking: jax.Array | None = None) -> jax.Array:
        shared = fan_out(x_BTD)
        (B, T, D), asked = (x_BTD.shape, shared) if asking is None else (asking.shape, fan_out(asking))

        def project(name: str, given: Any) -> jax.Array:
            return split_heads(Linear(D, ("embed", "heads"), use_bias=True, name=name)(given), self.heads, "heads")

        q_BTHK, k_BTHK, v_BTHK = project("query", asked), project("key", shared), project("value", shared)
        prefix = slot(self, "prefix")
        record(self, "attention", lambda: attention_weights(q_BTHK, k_BTHK, mask, prefix))
        y_BTHK = attend(q_BTHK, k_BTHK, v_BTHK, mask, prefix)
        return Linear(D, ("heads", "embed"), use_bias=True, name="out")(y_BTHK.reshape(B, T, D))


class FeedForward(nn.Module):
    """act(x W₁ + b₁) W₂ + b₂ (arXiv:1706.03762, eq. 2, with any activation)."""

    width: int
    activation: str

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        up_BTF = Linear(self.width, ("embed", "ffn"), use_bias=True, name="up")(x_BTD)
        hidden_BTF = ACTIVATIONS[self.activation](up_BTF)
        return Linear(x_BTD.shape[-1], ("ffn", "embed"), use_bias=True, name="down")(hidden_BTF)


def check_sizes(width: int, heads: int, activation: str) -> None:
    """Raise ValueError for sizes that are no model."""
    if width % heads:
        raise ValueError(f"width={width} is not a multiple of heads={heads}.")
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation={activation!r} is not one of {sorted(ACTIVATIONS)}.")


def slots_of(*, depth: int, width: int, heads: int, head_width: int, axis: str = "heads") -> dict[str, Slot]:
    """Return the slots of a stack of layers; `axis` is the logical name of its key/value heads."""
    residual_slot = Slot("residual", (depth, width), ("layers", "embed"))
    return {
        "layers/attention/prefix": Slot("prefix", (depth, heads, head_width), ("layers", axis, None)),
        "layers/attention_adapter": residual_slot,
        "layers/feed_forward_adapter": residual_slot,
        "prompt": Slot("prompt", (width,), ("embed",)),
    }
