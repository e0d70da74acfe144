"""All figures of a study."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from adaptlab.report.figures import Figure
from adaptlab.report.rate_figures import draw_rates
from adaptlab.report.training_figures import draw_training

__all__ = ["draw"]


def draw(curves: pa.Table, summary: Mapping[str, Any]) -> dict[str, Figure]:
    """Return a study's figures by name: the forgetting and gain curves, the trade-off and, if several learning rates
    were tried, what depends on them. `captions.captions` has the words for each.
    """
    return draw_training(curves, summary) | draw_rates(summary)
