"""A search in words: what its page and the console table have in common."""

import math
from collections.abc import Mapping
from typing import Any

from adaptlab.report.words import count, spread

__all__ = ["ordered", "per_million", "sentences"]


def ordered(search: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """The configurations: finalists by fresh gain, then the others by how far they came and what they gained there."""

    def place(item: tuple[str, Mapping[str, Any]]) -> tuple[float, ...]:
        row = item[1]
        gains = [row["fresh"]["gain"]["mean"] if row["fresh"] else math.nan, row["selection"]["gain"]]
        fresh, selected = (-math.inf if math.isnan(gain) else gain for gain in gains)
        return row["fresh"] is None, -fresh, -row["steps"], -selected

    return sorted(search["configurations"].items(), key=place)


def per_million(interval: Mapping[str, Any]) -> dict[str, Any]:
    """An interval of gain per parameter, for a million of them."""
    return {key: value if key == "n" else 1e6 * value for key, value in interval.items()}


def sentences(search: Mapping[str, Any]) -> list[str]:
    """What was selected on what, and what the finalists gain."""
    rows: Mapping[str, Any] = search["configurations"]
    finals = {name: row for name, row in rows.items() if row["fresh"]}
    if not finals:
        return [f"{len(rows)} configurations, none of which was trained again."]
    seeds = len(next(iter(finals.values()))["fresh"]["seeds"])
    said = [
        f"{len(rows)} configurations were drawn at random, and compared by {_reward(search)} on one seed and one text; "
        f"{len(finals)} {'finalist was' if len(finals) == 1 else 'finalists were'} trained again with {seeds} other "
        f"seeds and measured on text that had selected nothing. Only these fresh gains are estimates: the gains "
        f"selected on are those of the luckiest.",
        "An asterisk marks the front: no other finalist gains as much with as few parameters. As the best of several "
        "means it flatters itself a little still.",
    ]
    for budget, name in ((one["budget"], one["best"]) for one in search["budgets"]):
        row = rows[name]
        said.append(
            f"At most {count(budget)} parameters: {name} ({row['said']}; {count(row['parameters'])}) gains "
            f"{spread(row['fresh']['gain'])} nats/token."
        )
    return said


def _reward(search: Mapping[str, Any]) -> str:
    return "gain per parameter" if search["reward"] == "gain_per_parameter" else "gain"
