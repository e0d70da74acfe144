"""A figure of schedules."""

from collections.abc import Mapping

import numpy as np

from adaptlab.report.figures import Figure, grid, legend, looks, styled

__all__ = ["draw_schedules"]

_FACTOR, _MOMENTUM = "Factor of the peak learning rate", "Momentum"


@styled
def draw_schedules(factors: Mapping[str, np.ndarray], momenta: Mapping[str, np.ndarray]) -> Figure:
    """Return schedules over the updates: a panel of learning rates, and one of momenta if there are any.

    Args:
      factors: by name, the factor of the peak learning rate at each update.
      momenta: by name, the momentum at each update; a name of `factors` looks as it does there.
    """
    panels = {title: lines for title, lines in ((_FACTOR, factors), (_MOMENTUM, momenta)) if lines}
    named = {look.label: look for look in looks(list(dict.fromkeys([*factors, *momenta])))}
    figure, axes = grid(list(panels), 2.6)
    for panel, lines in zip(axes, panels.values(), strict=True):
        for i, (name, values_N) in enumerate(lines.items()):
            # Markers stand apart, so that of two curves on top of each other both are seen.
            every = max(1, len(values_N) // 8)
            start = i * every // max(1, len(lines))
            look = named[name]
            panel.plot(values_N, color=look.colour, marker=look.marker, markevery=(start, every))
        panel.set_xlabel("Update")
    legend(figure, axes[0], list(named.values()))
    return figure
