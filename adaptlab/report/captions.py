"""The words under the figures of a forgetting study."""

from collections.abc import Mapping
from typing import Any, NamedTuple

__all__ = ["Caption", "captions"]


class Caption(NamedTuple):
    """A figure's title and the text that explains it."""

    title: str
    text: str


def captions(summary: Mapping[str, Any]) -> dict[str, Caption]:
    """Return the captions of all figures that `figures.draw` may make, by name."""
    spread = _spread(summary, "mean")
    return {
        "forgetting_curve": Caption(
            "Forgetting curve",
            "Held-out loss on each upstream domain, and their mean, against training step; higher is more "
            f"forgetting. Dashed: the base. All panels span the same range of losses. {spread}",
        ),
        "gain_curve": Caption(
            "Gain curve",
            "Held-out loss on the target domain against training step; lower is more gain. Dashed: the base; "
            f"dotted: the loss at the largest gain that every run drawn reached. {spread}",
        ),
        "trade_off": Caption(
            "Trade-off",
            "Change of upstream loss against gain on the target, both relative to the base at (0, 0). Further "
            "right is more gain, lower is less forgetting, and points above one another forgot at equal gain. "
            f"{_spread(summary, 'mean at equal gain, as far as all seeds reached it')}",
        ),
        "learning_rates": Caption(
            "Learning rates",
            "Left: the best gain each learning rate reached (methods are shifted sideways a little). Right: "
            "that gain against the mean upstream change at the same step"
            f"{_labelled(summary)}. Filled points are what the other figures show. {_bars(summary)}",
        ),
        "heat_maps": Caption(
            "Heat maps",
            "Gain and forgetting at the end of training, by learning rate and method, averaged over the seeds that did "
            "not diverge; a cross counts those that did, and stands alone where all did. Colours of the gain are its "
            "share of the method's best, so each row can be read by itself; those of forgetting (red) are cut off at "
            "the ends of the bar. Empty: not run.",
        ),
        "usable_zones": Caption(
            "Usable zones",
            f"Final gain against learning rate. Shaded: the usable zone, where the mean gain is above the dashed line, "
            f"{_fraction(summary)} of the best, linear in the logarithm of the rate between those tried. A dotted edge "
            f"is the end of the rates tried, and the zone may go on. Titles: its width, averaged over seeds, a lower "
            f"bound where it is open for any of them. Crosses: some run diverged and counts as no gain. Each panel has "
            f"its own scale of gains. {_bars(summary)}",
        ),
    }


def _labelled(summary: Mapping[str, Any]) -> str:
    if len(summary["methods"]) > 4:  # as in the figure: more would hide each other
        return ", joined by increasing learning rate"
    return "; the number at a point is its learning rate"


def _fraction(summary: Mapping[str, Any]) -> str:
    return next((f"{zone['fraction']:.0%}" for zone in summary["zones"].values()), "a share")


def _spread(summary: Mapping[str, Any], line: str) -> str:
    counts = sorted({len(row["seeds"]) for row in summary["methods"].values()})
    diverged = any(row["diverged"] for row in summary["methods"].values())
    cross = " A cross marks where a run diverged." if diverged else ""
    if counts == [1]:
        return "One seed for each method, so no interval." + cross
    n, level = " or ".join(map(str, counts)), f"{summary['confidence']:.0%}"
    return (
        f"Thin lines: seeds (n = {n}); thick: {line}; band: {level} Student interval over seeds, which may "
        f"leave the frame.{cross}"
    )


def _bars(summary: Mapping[str, Any]) -> str:
    if all(len(row["seeds"]) == 1 for row in summary["groups"]):
        return "One seed at each rate, so no interval."
    return f"Bars: {summary['confidence']:.0%} Student interval over seeds."
