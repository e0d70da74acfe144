"""The command from a file to `fit.json`, in this process; the forms and fits themselves are tested beside."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adaptlab import config
from scripts import fit_annealing, fit_scaling

CLONE = Path(__file__).parents[2]
FIELDS = [
    *("form", "n_points", "parameters", "objective", "log_likelihood"),
    *("in_sample", "holdout", "predictions", "diagnostics"),
]
TRUE = {"E": 1.8, "A": 400.0, "alpha": 0.34, "B": 2000.0, "beta": 0.36}


def fit(folder, *overrides):
    """Run the command's work on a command line, without Hydra's process."""
    given = fit_scaling.overrides([*overrides, "starts=64", "bootstrap=0", "figures=false", "out=fit.json"])
    node = config.validate(config.compose("fit_scaling", given), schema=fit_scaling.Fitting)
    return fit_scaling.fit_file(fit_scaling.Fitting(**node), folder)


def points(**columns):
    """40 points of a known law of N and D, with a little noise, as a table."""
    rng = np.random.default_rng(0)
    n, d = (one.ravel() for one in np.meshgrid(np.geomspace(1e6, 1e9, 8), np.geomspace(1e8, 1e11, 5)))
    loss = (TRUE["E"] + TRUE["A"] / n ** TRUE["alpha"] + TRUE["B"] / d ** TRUE["beta"]) * np.exp(
        rng.normal(0, 1e-3, 40)
    )
    split = np.where(np.arange(40) % 13 == 12, "test", "train")
    return {"split": split, "C": 6 * n * d, "loss": loss, "N": n, "D": d, **columns}


def write(path, columns, separator=","):
    rows = [separator.join(map(str, row)) for row in zip(*columns.values(), strict=True)]
    path.write_text("\n".join([separator.join(columns), *rows]))
    return f"data={path}"


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The command of the documentation on a table of a known law."""
    folder = tmp_path_factory.mktemp("fit")
    data = write(folder / "points.csv", points())
    result = fit(
        *[folder, data, "form=chinchilla", "x=[N,D=C/(6*N)]", "y=loss", "where=split==train", "drop_highest=2"],
        *["holdout=largest:20%", "at=[{N: 1e9, D: 2e11}, {N: 1e9, C: 6e20}]"],
    )
    return result, folder


def test_fit_json_has_exactly_the_documented_fields(fitted):
    result, folder = fitted
    assert list(result) == FIELDS
    assert list(result["parameters"]) == list(TRUE)
    assert {tuple(row) for row in result["parameters"].values()} == {("value", "stderr", "low", "high")}
    errors = ["n", "rmse_log", "mean_relative_error", "max_relative_error"]
    assert list(result["in_sample"]) == list(result["holdout"]) == errors
    assert [list(row) for row in result["predictions"]] == [["inputs", "value", "low", "high"]] * 2
    assert list(result["diagnostics"]) == ["identifiability", "starts_agree", "warnings"]
    assert list(json.loads((folder / "fit.json").read_text())) == FIELDS


def test_rows_are_chosen_dropped_and_held_out_and_the_law_is_found(fitted):
    result, _ = fitted
    kept = 40 - 3 - 2
    assert (result["n_points"], result["holdout"]["n"]) == (kept - 7, 7)
    for name, row in result["parameters"].items():
        assert row["low"] < row["value"] < row["high"]
        assert abs(row["value"] - TRUE[name]) < 4 * row["stderr"], name  # five at once, so not their 95% intervals
    assert result["holdout"]["mean_relative_error"] < 5e-3
    assert result["diagnostics"]["identifiability"]["verdict"] != "not identified"


def test_a_prediction_may_be_asked_for_by_inputs_or_by_the_columns_they_follow_from(fitted):
    first, second = fitted[0]["predictions"]
    truth = TRUE["E"] + TRUE["A"] / 1e9 ** TRUE["alpha"] + TRUE["B"] / 2e11 ** TRUE["beta"]
    assert first["low"] < truth < first["high"]
    assert second["inputs"] == {"N": 1e9, "C": 6e20}
    assert second["value"] > first["value"]  # C = 6 N D gives half the data


def test_groups_are_fitted_as_they_are_alone(tmp_path):
    x = np.geomspace(1e3, 1e7, 9)
    rows = {"model": ["a"] * 9 + ["b"] * 6, "D": [*x, *x[:6]], "loss": [*(1 + 30 / x**0.4), *(2 + 9 / x[:6] ** 0.3)]}
    data = write(tmp_path / "groups.tsv", rows, "\t")
    result = fit(tmp_path, data, "form=power", "x=D", "group=model")
    assert list(result) == ["form", "groups"]
    assert list(result["groups"]) == ["a", "b"]
    assert all(list(one) == FIELDS for one in result["groups"].values())
    assert result["groups"]["a"]["parameters"]["E"]["value"] == pytest.approx(1, rel=1e-3)
    assert result["groups"]["b"]["parameters"]["E"]["value"] == pytest.approx(2, rel=1e-3)


@pytest.mark.parametrize(
    ("rows", "overrides", "said"),
    [
        (points(), ["where=split==nowhere"], r"keeps none of the 40 rows.* split is one of \['test', 'train'\]"),
        (points(), ["y=los"], r"has no column 'los'. Did you mean 'loss'\?"),
        (points(), ["x=[N]"], r"chinchilla has the inputs \['N', 'D'\]; give one column for each: x=\[N=COLUMN"),
        (points(), ["where=N<2e6"], r"input N is 1e\+06 in all 5 rows"),
        (
            points(),
            ["where=N<2e6 or D<2e8", "holdout=largest:60%"],
            "5 of 12 points are left to fit, and chinchilla has 5",
        ),
        (points(), ["at=[{N: 1e9}]"], r"at\[0\].* must give \['N', 'D'\].* no column 'D'"),
        (points(), ["at=[{N: -1, D: 1e9}]"], r"at\[0\]: N is -1"),
        (points(), ["y=N", "x=[loss,D]"], "Were they swapped"),
        (points(loss=-points()["loss"]), [], r"points.csv, line 2: y loss is -.*where='loss>0'"),
        (points(N=[1e6] * 40), [], r"input N is 1e\+06 in all 40 rows"),
        (points(), ["level=95"], "level must be between 0 and 1, got 95"),
        (points(), ["group=modle"], "no column 'modle'"),
    ],
    ids=[
        *[
            "where keeps nothing",
            "unknown column",
            "too few columns",
            "one size",
            "too few points",
            "prediction",
            "sign",
        ],
        *["swapped", "negative loss", "one N", "level", "unknown group"],
    ],
)
def test_bad_input_is_an_error_before_anything_is_fitted(tmp_path, rows, overrides, said):
    data = write(tmp_path / "points.csv", rows)
    with pytest.raises(ValueError, match=said):
        fit(tmp_path, data, "form=chinchilla", *overrides)
    assert not (tmp_path / "fit.json").exists()


def test_two_points_are_an_error_that_says_how_many_are_needed(tmp_path):
    data = write(tmp_path / "points.csv", {"D": [1e6, 1e7], "loss": [3.0, 2.0]})
    with pytest.raises(ValueError, match=r"there are 2 points, and power has 3 parameters .* at least 4"):
        fit(tmp_path, data, "form=power", "x=D")


def test_a_form_that_there_is_not_names_those_there_are(tmp_path):
    done = run("scripts.fit_scaling", "form=chinchila", "data=x.csv", cwd=tmp_path)
    assert done.returncode != 0
    assert "data_constrained" in done.stderr


def run(module, *arguments, cwd):
    command = [sys.executable, "-m", module, *arguments, f"hydra.run.dir={cwd}"]
    return subprocess.run(command, cwd=CLONE, capture_output=True, text=True, timeout=600)


@pytest.mark.slow
def test_the_documented_command_writes_results_figures_and_a_sentence(tmp_path):
    data = write(tmp_path / "points.csv", points())
    words = ["form=chinchilla", "x=[N,D]", "y=loss", "where=split==train", "drop_highest=5", "loss=huber", "space=log"]
    more = ["bootstrap=100", "holdout=largest:20%", "at=[{N: 1e9, D: 2e10}]", "starts=64"]
    done = run("scripts.fit_scaling", data, *words, *more, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fitted to 26 points" in done.stdout
    assert list(json.loads((tmp_path / "fit.json").read_text())) == FIELDS
    for name in ("law", "residuals", "profiles", "isoflop"):
        assert (tmp_path / f"fit_{name}.png").stat().st_size > 10_000


@pytest.mark.slow
def test_a_law_of_annealing_is_fitted_to_some_schedules_and_judged_on_others(tmp_path):
    data = f"data={CLONE}/tests/golden/mpl_loss_curves_25M.csv"
    words = ["schedule=schedule", "step=step", "lr=lr", "y=loss", "law=momentum", "starts=16", "warmup=2160"]
    done = run("scripts.fit_annealing", data, *words, "train=[cosine_24000,constant_24000,wsdcon_9]", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "fit.json").read_text())
    assert list(result) == [*FIELDS, "schedules", "estimate", "left_out"]
    assert list(result["left_out"]) == ["cosine_24000", "constant_24000", "wsdcon_9"]
    assert [row["split"] for row in result["schedules"].values()] == ["train"] * 3 + ["test"] * 6
    assert result["holdout"]["mean_relative_error"] < 2e-3
    assert (tmp_path / "fit_curves.png").exists()
    assert (tmp_path / "fit_curves.csv").read_text().count("\n") == 1 + sum(
        r["n"] for r in result["schedules"].values()
    )


def anneal(folder, *overrides):
    """The work of `scripts.fit_annealing` on a command line, without Hydra's process."""
    given = fit_annealing.overrides([*overrides, "figures=false"])
    node = config.validate(config.compose("fit_annealing", given), schema=fit_annealing.Fitting)
    return fit_annealing.fit_file(fit_annealing.Fitting(**node), folder)


def test_an_early_stopped_law_is_reported_without_errors_that_it_does_not_have(tmp_path, capsys):
    step, kinds = np.arange(100, 2100, 100.0), ("constant", "linear", "two_stage", "late")
    lr = np.concatenate(
        [np.full(20, 1e-3), np.linspace(1e-3, 1e-4, 20), *(np.where(step < s, 1e-3, 3e-4) for s in (900, 1500))]
    )
    area = np.cumsum(lr.reshape(4, 20) * 100, axis=1).ravel()
    loss = 3 + 0.5 * area**-0.5 - 200 * (1e-3 - lr)
    columns = {"schedule": np.repeat(kinds, 20), "step": np.tile(step, 4), "lr": lr, "loss": loss}
    data = write(tmp_path / "curves.csv", columns)
    anneal(tmp_path, data, "estimate=early_stopping", "starts=4", "test=[late]")
    result = json.loads((tmp_path / "fit.json").read_text())
    assert list(result) == [*FIELDS, "schedules", "estimate", "left_out"]
    assert result["estimate"] == "early_stopping"
    assert list(result["left_out"]) == ["constant", "linear", "two_stage"]
    assert 0 < result["holdout"]["mean_relative_error"] < 0.05
    for row in result["parameters"].values():
        assert row["value"] is not None
        assert (row["stderr"], row["low"], row["high"]) == (None, None, None)
    assert [(row["low"], row["high"]) for row in result["predictions"]] == [(None, None)]
    assert result["diagnostics"]["identifiability"]["verdict"] is None
    said = " ".join(result["diagnostics"]["warnings"])
    assert "Stopped early, by design" in said
    assert "standard errors take rows as independent" not in said
    printed = capsys.readouterr().out
    assert "its descent stopped early: L0 = " in printed
    assert "with 95% intervals" not in printed


def test_an_estimate_that_there_is_not_names_those_there_are(tmp_path):
    with pytest.raises(config.ConfigError, match=r"estimate.*minimise.*early_stopping"):
        anneal(tmp_path, "data=c.csv", "estimate=early")


def test_the_column_of_schedules_is_not_taken_for_the_group_of_schedules():
    given = fit_annealing.overrides(["data=c.csv", "schedule=run", "step=step", "where=step>10", "train=[a b,c]"])
    node = config.validate(config.compose("fit_annealing", given), schema=fit_annealing.Fitting)
    assert (node["schedule_column"], node["where"], node["train"]) == ("run", "step>10", ["a b", "c"])
