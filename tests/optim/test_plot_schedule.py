"""The command that draws schedules."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from adaptlab import config
from adaptlab.report.figures import render
from adaptlab.report.schedule_plot import draw_schedules
from scripts.plot_schedule import Plot, curves, table

CLONE = Path(__file__).parents[2]
NAMES = sorted(path.stem for path in (config.conf_dir() / "schedule").glob("*.yaml"))


def plot(*overrides: str) -> Plot:
    return Plot(**config.validate(config.compose("plot_schedule", overrides), schema=Plot))


@pytest.mark.parametrize("name", NAMES)
def test_every_schedule_of_the_folder_can_be_drawn(name: str):
    factors, momenta = curves(plot(f"schedule={name}", "total_steps=40"))
    drawn = momenta if name.endswith("_momentum") else factors
    assert drawn[name].shape == (40,)
    assert np.all((drawn[name] >= 0) & (drawn[name] <= 1))


def test_a_momentum_of_the_same_shape_comes_along():
    factors, momenta = curves(plot("schedule=one_cycle", "schedule.warmup=0.6", "total_steps=50"))
    assert factors["one_cycle"].argmax() == momenta["one_cycle"].argmin() == 29
    assert curves(plot("schedule=cosine"))[1] == {}


def test_several_are_drawn_by_name_and_an_unknown_one_is_an_error_that_names_the_nearest():
    assert list(curves(plot("schedules=[wsd,linear]"))[0]) == ["wsd", "linear"]
    with pytest.raises(config.ConfigError, match=r"'cosin'\. Did you mean 'cosine'"):
        curves(plot("schedules=[cosin]"))


def test_the_table_has_the_first_and_the_last_update():
    rows = [line.split() for line in table({"one": np.arange(101.0)}, 101).splitlines()]
    assert rows[0] == ["update", "one"]
    assert [row[0] for row in rows[1:]] == [row[1] for row in rows[1:]] == [str(i) for i in range(0, 101, 10)]


def test_a_figure_has_a_panel_of_momenta_only_where_there_are_any():
    lines = {"one": np.linspace(0, 1, 5)}
    assert len(draw_schedules(lines, {}).axes) == 1
    figure = draw_schedules(lines, {"one": 1 - lines["one"], "other": lines["one"]})
    first, second = figure.axes
    assert first.lines[0].get_color() == second.lines[0].get_color()
    assert render(figure, "png") == render(
        draw_schedules(lines, {"one": 1 - lines["one"], "other": lines["one"]}), "png"
    )


def test_the_command_writes_the_file_it_names(tmp_path: Path):
    command = [sys.executable, "-m", "scripts.plot_schedule", "schedule=wsd", "total_steps=20", "out=wsd.svg"]
    environment = {**os.environ, "PYTHONPATH": str(CLONE)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "wsd.svg"
    assert "<svg" in (tmp_path / "wsd.svg").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["wsd.svg"]
