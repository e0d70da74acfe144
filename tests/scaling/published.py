"""The published loss curves that laws of annealing are tested on."""

from pathlib import Path

from adaptlab.scaling.annealing import Curve, make_curve
from adaptlab.scaling.table import load_table, take

CURVES = Path(__file__).parents[1] / "golden" / "mpl_loss_curves_25M.csv"


def published_curves() -> dict[str, list[Curve]]:
    """The curves of `{split: curves}`, behind their warm-up."""
    table = load_table(CURVES)
    names, splits = table.columns["schedule"], table.columns["split"]
    found: dict[str, list[Curve]] = {"train": [], "test": []}
    for name in dict.fromkeys(names):
        rows = take(table, names == name)
        curve = make_curve(name, *(rows.columns[one] for one in ("step", "lr", "loss")), 2160)
        found[splits[names == name][0]].append(curve)
    return found
