"""All figures of a study."""

from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from adaptlab.report.figures import Figure
from adaptlab.report.probe_figures import draw_probes
from adaptlab.report.rank_figures import draw_ranks
from adaptlab.report.rate_figures import draw_rates
from adaptlab.report.training_figures import draw_training
from adaptlab.report.update_figures import draw_updates

__all__ = ["draw"]


def draw(curves: pa.Table, summary: Mapping[str, Any], updates: pa.Table | None = None) -> dict[str, Figure]:
    """Return a study's figures by name: the forgetting and gain curves, the trade-off and, if several learning rates or
    ranks were tried, what depends on them; what else was measured while training; with `updates`, what updates look
    like. `captions.captions`, `probe_figures.probe_captions` and `update_captions.update_captions` have their words.
    """
    figures = draw_training(curves, summary) | draw_rates(summary) | draw_ranks(summary)
    figures |= draw_probes(curves, summary)
    return figures if updates is None else figures | draw_updates(updates, summary)
