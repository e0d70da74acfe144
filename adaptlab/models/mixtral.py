"""The decoder family of Mixtral (arXiv:2401.04088): a Llama whose feed-forward is a mixture of experts."""

import functools
from dataclasses import dataclass

from adaptlab.models.intermediates import MOE_KINDS
from adaptlab.models.llama import LlamaShape, decoder
from adaptlab.models.model import Model
from adaptlab.models.moe import Experts

__all__ = ["MixtralShape", "mixtral"]


@dataclass(frozen=True)
class MixtralShape:
    """The sizes that fix a Mixtral: what a checkpoint's config says.

    Attributes:
      vocab_size: V.
      width: D, the residual stream.
      depth: L, the number of layers.
      heads: H, query heads.
      kv_heads: G, key/value heads; divides H.
      head_width: K.
      ffn_width: F, of one expert.
      experts: E, in each layer.
      active: how many of them each token is given to.
      rope_base: the base of the rotary frequencies.
      norm_eps: the epsilon of RMSNorm.
      tied: whether the head is the transposed embedding.
    """

    vocab_size: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_width: int
    ffn_width: int
    experts: int = 8
    active: int = 2
    rope_base: float = 1_000_000.0
    norm_eps: float = 1e-5
    tied: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.experts:
            raise ValueError(
                f"active={self.active} of experts={self.experts}: a token is given to at least one expert and to no "
                f"more than there are; choose active from 1 to {self.experts}."
            )
        self.dense()  # raises for sizes that no decoder has

    def dense(self) -> LlamaShape:
        """The Llama whose attention, embedding and norms these are, with one expert in place of all."""
        return LlamaShape(
            vocab_size=self.vocab_size,
            width=self.width,
            depth=self.depth,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_width=self.head_width,
            ffn_width=self.ffn_width,
            rope_base=self.rope_base,
            norm_eps=self.norm_eps,
            tied=self.tied,
        )


def mixtral(
    shape: MixtralShape,
    *,
    dtype: str = "float32",
    remat: str = "none",
    unroll: int | None = None,
    attention: str = "auto",
    capacity_factor: float | None = None,
) -> Model:
    """Return a Mixtral-family decoder, called as `llama` is.

    Its weights are a Llama's but for the feed-forward: `layers/feed_forward/(gate|up|down)/kernel` are `[L, E, …]`,
    one matrix for each expert, adapted like any others, and `layers/feed_forward/router` is `[L, D, E]`. The router is
    not called a kernel: by default methods for matrices neither adapt nor round it, and a pattern that names it does.
    Full fine-tuning trains it.

    `intermediates` has three kinds more: "router", "chosen" and "dropped" (`adaptlab.models.Model`).

    Args:
      shape: the sizes.
      dtype: see `llama`; the router is float32.
      remat: see `llama`.
      unroll: see `llama`.
      attention: see `llama`.
      capacity_factor: None drops no token, and computes all experts for all tokens; a number gives each expert that
        many times the slots that an even load needs (1.25 is usual), see `adaptlab.models.moe.Experts`. From E / active
        on, nothing is dropped either.

    Raises:
      ValueError: an unknown `dtype`, `remat` or `attention`, or a capacity factor that leaves no room.
    """
    if capacity_factor is not None and capacity_factor <= 0:
        raise ValueError(f"capacity_factor={capacity_factor} leaves no room for any token; give e.g. 1.25, or None.")
    experts = functools.partial(Experts, experts=shape.experts, active=shape.active, capacity_factor=capacity_factor)
    options = {"dtype": dtype, "remat": remat, "unroll": unroll, "attention": attention}
    return decoder(shape.dense(), experts, **options, kinds=MOE_KINDS)
