"""Errors of fitted laws on published curves, beside what the publications report. Writes the tables of docs/scaling.md.

    python -m benchmarks.extrapolation [--out docs/scaling.md] [--starts 512]

Same data, same split, same metric as the publication of each row:

- `rectified_ft_flan.csv`: 30 models, test loss after fine-tuning on 200 to 1,638,400 examples; one law for each model,
  root-mean-square deviation of log loss over the 14 sizes, mean over models (Lin et al., arXiv:2402.02314, table 1).
- the same, fitted to the sizes up to 102,400 and judged on the four above: no publication; the larger is predicted.
- `mpl_loss_curves_25M.csv`: fitted to three learning-rate schedules, judged on six; mean relative error of each curve,
  mean over curves (Luo et al., arXiv:2503.12811, table 2).
- the same three schedules, each predicted by a fit to the other two: no publication; what the choice of an estimate may
  be judged by, as the six are not known when it is made.
"""

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import jax
import numpy as np

from adaptlab.scaling import Fit, Form, Minimum, Points, as_points, fit, fit_groups, forms, predict
from adaptlab.scaling.annealing import Curve, annealing_points, exposure_of, make_curve
from adaptlab.scaling.annealing_laws import area_law, momentum_law, multi_power_law
from adaptlab.scaling.early_stopping import fit_early_stopped, refit_early_stopped
from adaptlab.scaling.forms import power, rectified
from adaptlab.scaling.left_out import leave_schedules_out
from adaptlab.scaling.table import column, load_table, numbers, take

GOLDEN = Path(__file__).parents[1] / "tests" / "golden"
SIZES = [200 * 2**i for i in range(14)]
LARGEST = 4  # sizes that are predicted
# In the authors' code, for the 25M model.
PUBLISHED = {
    "L0": 3.04045406,
    "A": 0.52468604,
    "alpha": 0.50786857,
    "B": 363.78751622,
    "C": 2.06560812,
    "beta": 0.58279013,
    "gamma": 0.64142257,
}

Row = tuple[str, str, str, float, float | None]  # data, law, what is measured, here, published


def fine_tuning(starts: int) -> list[Row]:
    table = load_table(GOLDEN / "rectified_ft_flan.csv")
    y_MS = np.stack([numbers(table, str(size)) for size in SIZES], axis=1)
    names = column(table, "config name")
    rows: list[Row] = []
    for law, key, published in ((rectified(), "D", 0.00648), (power(), "x", 0.03583)):
        every = deviations(law, points(names, y_MS, key), y_MS, key, starts)
        part = deviations(law, points(names, y_MS[:, :-LARGEST], key), y_MS, key, starts)
        what = "RMSD of log loss"
        rows.append(("fine-tuning, 14 sizes, all fitted", law.name, what, every.mean(), published))
        ahead = np.sqrt((part[:, -LARGEST:] ** 2).mean(1)).mean()
        rows.append((f"fine-tuning, the {LARGEST} largest of 14 sizes predicted", law.name, what, ahead, None))
    return rows


def points(names: np.ndarray, y_MS: np.ndarray, key: str) -> dict[str, Points]:
    return {name: as_points({key: SIZES[: len(y)]}, y) for name, y in zip(names, y_MS, strict=True)}


def deviations(law: Form, groups: Mapping[str, Points], y_MS: np.ndarray, key: str, starts: int) -> np.ndarray:
    """RMSD over the sizes of each model if all were fitted, else the deviation at each size."""
    fits = fit_groups(law, groups, loss="squared", starts=starts)
    x = {key: np.array(SIZES, np.float64)}
    apart_MS = np.stack([np.log(predict(one, x)) for one in fits.values()]) - np.log(y_MS)
    fitted = next(iter(groups.values())).n
    return np.sqrt((apart_MS**2).mean(1)) if fitted == len(SIZES) else apart_MS


def annealing(starts: int) -> list[Row]:
    curves = schedules()
    exposure = exposure_of(curves["train"])
    points = annealing_points(exposure)

    def error(law: Callable[..., Form], values: Mapping[str, float]) -> float:
        found = []
        for curve in curves["test"]:
            one = exposure_of([curve])
            with jax.enable_x64(True):
                y = np.asarray(law(one).predict(values, annealing_points(one).x))
            found.append(np.abs(y / curve.loss_T - 1).mean())
        return float(np.mean(found))

    what, data = "mean relative error", "6 schedules predicted from 3"
    rows: list[Row] = []
    for law, published in ((area_law, None), (momentum_law, None), (multi_power_law, 0.0011)):
        fitted = fit(law(exposure), points, starts=starts)
        rows.append((data, f"{fitted.form.name}, best fit", what, error(law, fitted.values), published))
    early = fit_early_stopped(exposure)
    rows.append((data, "multi_power, early-stopped", what, error(multi_power_law, early.values), 0.0011))
    rows.append((data, "multi_power, the published parameters", what, error(multi_power_law, PUBLISHED), 0.0011))
    estimates: list[tuple[str, Fit, Callable[..., Minimum]]] = [
        ("best fit", fitted, partial(searched, fitted, starts)),
        ("early-stopped", early, partial(refit_early_stopped, exposure)),
    ]
    for name, one, again in estimates:
        left_out = leave_schedules_out(one, exposure, again)
        law = f"multi_power, {name}"
        rows += [(f"{out} predicted from the 2 others", law, what, apart, None) for out, apart in left_out.items()]
    return rows


def schedules() -> dict[str, list[Curve]]:
    """The curves of each split."""
    table = load_table(GOLDEN / "mpl_loss_curves_25M.csv")
    names, splits = column(table, "schedule"), column(table, "split")
    curves: dict[str, list[Curve]] = {"train": [], "test": []}
    for name in dict.fromkeys(names):
        rows = take(table, names == name)
        values = (numbers(rows, one) for one in ("step", "lr", "loss"))
        curves[splits[names == name][0]].append(make_curve(name, *values, 2160))
    return curves


def searched(fitted: Fit, starts: int, *, weights: Sequence[np.ndarray]) -> Minimum:
    """The best fit under each weighting, from all starts."""
    found = [fit(fitted.form, fitted.points._replace(weights=one), starts=starts) for one in weights]
    theta, objective, converged = zip(*((one.theta, one.objective, one.converged) for one in found), strict=True)
    return Minimum(np.stack(theta), np.array(objective), np.array(converged))


def table_of(rows: list[Row]) -> str:
    lines = ["| data | law | metric | adaptlab | published |", "|---|---|---|---|---|"]
    for data, law, what, here, published in rows:
        lines.append(f"| {data} | {law} | {what} | {here:.5f} | {'-' if published is None else f'{published:g}'} |")
    return "\n".join(lines)


def forms_table() -> str:
    lines = ["| form | inputs | law | source |", "|---|---|---|---|"]
    for name in forms.__all__:
        form = getattr(forms, name)()
        lines.append(f"| `{name}` | {', '.join(form.inputs)} | `{form.equation}` | {form.source} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a page whose tables between marks are replaced")
    parser.add_argument("--starts", type=int, default=256)
    given = parser.parse_args()
    table = table_of([*fine_tuning(given.starts), *annealing(min(given.starts, 16))])
    print(table)
    if given.out is not None:
        page = given.out.read_text()
        for mark, text in (("extrapolation", table), ("forms", forms_table())):
            between = f"(<!-- {mark} -->\n).*?(<!-- end -->)"
            page = re.sub(between, lambda found, text=text: f"{found[1]}{text}\n{found[2]}", page, flags=re.DOTALL)
        given.out.write_text(page)


if __name__ == "__main__":
    main()
