"""The rungs of a ladder of models: width, depth, batch, tokens and learning rate, all from one integer."""

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

from adaptlab.models import LlamaShape

__all__ = ["Budget", "Ladder", "Rung", "budget", "ladder", "rung"]

_BATCH_AT = 2**19  # tokens at which a batch has the size it is named by
_PER_COMPUTE = 6  # FLOPs for each parameter and token of training: forward 2, backward 4


class Rung(NamedTuple):
    """A model of the ladder.

    Attributes:
      dial: n, the integer that all else follows from.
      shape: its sizes.
    """

    dial: int
    shape: LlamaShape

    @property
    def name(self) -> str:
        """What the rung is called in folders and tables."""
        return f"n{self.dial}"

    @property
    def parameters(self) -> int:
        """N: all weights, the tied embedding once.

        N = V D + L (4 D H K + 3 D F + 2 D) + D
        """
        s = self.shape
        heads = s.heads * s.head_width
        layer = 4 * s.width * heads + 3 * s.width * s.ffn_width + 2 * s.width
        return s.vocab_size * s.width + s.depth * layer + s.width


class Budget(NamedTuple):
    """How a rung is trained on an amount of text.

    Attributes:
      tokens: D, a whole number of batches.
      batch_size: rows per update.
      steps: updates.
      lr: the peak learning rate.
      flops: C = 6 N D.
    """

    tokens: int
    batch_size: int
    steps: int
    lr: float
    flops: float


class Ladder(NamedTuple):
    """What the rungs have in common; made by `ladder`, which has the attributes."""

    rungs: tuple[Rung, ...]
    budgets: tuple[int, ...]
    length: int
    rate: float
    batch: float

    @property
    def largest(self) -> Rung:
        """The rung that the others predict."""
        return self.rungs[-1]


def ladder(
    rungs: Sequence[int] = (1, 2, 3, 4, 5),
    *,
    aspect: int = 32,
    vocab_size: int = 1024,
    ratio: float = 20.0,
    budgets: int | None = None,
    length: int = 128,
    rate: float = 0.256,
    batch: float = 256.0,
) -> Ladder:
    """Return a ladder.

    Every rung n has a width of `aspect` times n, see `rung`. A rung of N parameters is meant for

        D = ratio N   tokens

    (Hoffmann et al., arXiv:2203.15556, section 3: ratio about 20). The law of pre-training needs N and D apart, so each
    rung is trained on the tokens that the rule gives to each of the first `budgets` rungs: a grid, with the models of
    the rule on its diagonal. How large a batch and a learning rate is, see `budget`; how random weights are drawn, see
    `adaptlab.models.by_fan_in`.

    Args:
      rungs: the dials, increasing; the last one is predicted by the others.
      aspect: the width per layer.
      vocab_size: V.
      ratio: tokens per parameter.
      budgets: how many amounts of text; None is one for each rung.
      length: T, tokens per row.
      rate: the peak learning rate at a width of 1, see `budget`.
      batch: tokens per update where half a million are trained on, see `budget`.

    Raises:
      ValueError: dials that do not increase, fewer than three of them, or a number that no ladder can have.
    """
    dials = [int(n) for n in rungs]
    if len(dials) < 3 or dials[0] < 1 or any(b <= a for a, b in itertools.pairwise(dials)):
        raise ValueError(
            f"rungs={dials}: expected at least three increasing dials from 1 on, such as [1, 2, 3]: two to fit a law "
            "and one to predict."
        )
    if budgets is not None and not 1 <= budgets <= len(dials):
        raise ValueError(f"budgets={budgets}: expected 1 to {len(dials)}, the tokens of so many of the smallest rungs.")
    if min(ratio, rate, batch) <= 0 or length < 2:
        raise ValueError(
            f"ratio={ratio}, rate={rate}, batch={batch}, length={length}: expected positive numbers, and rows "
            "of 2 tokens or more."
        )
    made = tuple(rung(n, aspect=aspect, vocab_size=vocab_size) for n in dials)
    tokens = tuple(round(ratio * one.parameters) for one in made[:budgets])
    return Ladder(made, tokens, length, rate, batch)


def rung(dial: int, *, aspect: int = 32, vocab_size: int = 1024) -> Rung:
    """Return the model of dial n: n layers of width `aspect` n with n heads.

        L = n,   D = aspect n,   H = n,   K = aspect,   F = 8 / 3 D, rounded to a multiple of 8

    Depth and width grow together, since the loss depends on the number of parameters and hardly on the aspect ratio
    (Kaplan et al., arXiv:2001.08361, section 3.1). F makes the gated feed-forward as large as an ungated one of 4 D
    (Shazeer, arXiv:2002.05202, section 2). Without the embedding N is about 12 aspect^2 n^3.

    Args:
      dial: n.
      aspect: the width per layer, and of a head; even.
      vocab_size: V.

    Raises:
      ValueError: an aspect or a dial that no model has.

    >>> rung(3).parameters
    430752
    """
    if dial < 1 or aspect < 4 or aspect % 2:
        raise ValueError(f"dial={dial}, aspect={aspect}: expected a dial from 1 on and an even aspect of at least 4.")
    width = aspect * dial
    ffn_width = max(8, 8 * round(width / 3))
    return Rung(dial, LlamaShape(vocab_size, width, dial, dial, dial, aspect, ffn_width))


def budget(one: Rung, tokens: int, *, length: int = 128, rate: float = 0.256, batch: float = 256.0) -> Budget:
    """Return the batch, the updates and the learning rate for training a rung on so many tokens.

        batch = `batch` (D / 2^19)^0.383 tokens,   learning rate = `rate` / width

    The best batch grows with the tokens and hardly with the model; the exponent is the one fitted by Bergsma et al.
    (arXiv:2505.13738). The rate is Adam's for matrices whose fan-in is the width (Yang et al., arXiv:2203.03466,
    table 8), here of all weights. Both constants are by single runs of the three smallest rungs (docs/ladder.md).

    Args:
      one: the rung.
      tokens: D; rounded up to whole batches.
      length: T, tokens per row.
      rate: the peak learning rate at a width of 1.
      batch: tokens per update at D = 2^19; rounded to whole rows, of which there is at least one.
    """
    batch_size = max(1, round(batch * (tokens / _BATCH_AT) ** 0.383 / length))
    steps = max(1, math.ceil(tokens / (batch_size * length)))
    seen = steps * batch_size * length
    return Budget(seen, batch_size, steps, rate / one.shape.width, float(_PER_COMPUTE * one.parameters * seen))
