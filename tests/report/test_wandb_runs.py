import os
import subprocess
import sys

import pytest

from adaptlab.report import wandb
from adaptlab.report.scaling.inputs import load_rows
from adaptlab.report.wandb_runs import offline_runs

LOG = """
import sys, wandb
for size in (1e6, 2e6):
    run = wandb.init(project="p", name=f"size={size:g}", config={"N": size, "optim": {"lr": 0.1}}, mode="offline",
                     dir=sys.argv[1], reinit="create_new", settings=wandb.Settings(silent=True, console="off"))
    for step in range(300):
        run.log({"loss": 4.0 - step / 100 - size / 1e7, "note": "x" * 200, "nested": {"value": step}})
    run.finish()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two runs made offline by W&B itself, long enough for records that cross its blocks of 32 KiB."""
    path = tmp_path_factory.mktemp("offline")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("WANDB")}
    subprocess.run([sys.executable, "-c", LOG, str(path)], check=True, timeout=120, env=kept, capture_output=True)
    return path


def test_offline_runs_come_back_with_their_settings_and_every_row(folder):
    first, second = sorted(offline_runs(folder), key=lambda run: run.config["N"])
    assert (first.name, first.config["optim.lr"]) == ("size=1e+06", 0.1)
    assert [row["loss"] for row in second.rows] == [4.0 - step / 100 - 0.2 for step in range(300)]
    assert second.rows[17]["nested.value"] == 17


def test_a_run_is_one_row_of_last_values_or_a_row_for_each_step(folder):
    last = load_rows(str(folder))
    assert sorted(last.columns["N"]) == [1e6, 2e6]
    assert last.columns["step"].tolist() == [299, 299]
    assert sorted(last.columns["loss"]) == [4.0 - 2.99 - 0.2, 4.0 - 2.99 - 0.1]
    every = load_rows(str(folder), every_step=True)
    assert every.n == 600
    one = next(folder.glob("wandb/offline-run-*"))  # the link `latest-run` beside them is not another run
    assert load_rows(str(one), every_step=True).n == 300


def test_a_torn_file_gives_the_rows_before_the_tear_and_another_kind_of_file_an_error(folder, tmp_path):
    content = next(folder.glob("**/*.wandb")).read_bytes()
    (tmp_path / "run-torn.wandb").write_bytes(content[: len(content) // 2])
    (run,) = offline_runs(tmp_path)
    assert 0 < len(run.rows) < 300
    (tmp_path / "run-torn.wandb").write_bytes(b"something else")
    with pytest.raises(ValueError, match="not a file of a W&B run"):
        offline_runs(tmp_path)


class _Run:
    """A run as W&B's client gives it."""

    def __init__(self, number):
        self.id, self.name = f"id{number}", f"run {number}"
        self.config = {"N": 10.0**number, "loss": "cross-entropy", "_wandb": {"t": 1}}
        self.summary = {"loss": 3.0 - number, "_step": 9, "histogram": [1, 2]}

    def scan_history(self):
        return [{"_step": step, "loss": 5.0 - step} for step in range(3)]


def test_a_project_online_is_read_through_the_client_of_wandb(monkeypatch):
    asked = []

    class Api:
        def runs(self, path):
            asked.append(path)
            return [_Run(1), _Run(2)]

    monkeypatch.setattr(wandb, "public_api", Api)
    table = load_rows("wandb:entity/project")
    assert asked == ["entity/project"]
    assert table.columns["run"].tolist() == ["run 1", "run 2"]
    assert table.columns["loss"].tolist() == [2.0, 1.0]
    assert table.columns["config.loss"].tolist() == ["cross-entropy"] * 2  # the setting does not hide the metric
    assert table.columns["N"].tolist() == [10.0, 100.0]
    assert load_rows("wandb:entity/project", every_step=True).columns["loss"].tolist() == [5.0, 4.0, 3.0] * 2


def test_a_project_that_cannot_be_read_or_is_empty_is_an_error_with_a_remedy(monkeypatch):
    class Api:
        def runs(self, path):
            if path == "entity/empty":
                return []
            raise ConnectionError("no route")

    monkeypatch.setattr(wandb, "public_api", Api)
    with pytest.raises(ValueError, match=r"'entity/mine' cannot be read \(ConnectionError: no route\).*`wandb login`"):
        load_rows("wandb:entity/mine")
    with pytest.raises(ValueError, match="has no runs"):
        load_rows("wandb:entity/empty")


def test_a_folder_without_runs_says_what_it_has(tmp_path):
    (tmp_path / "points.csv").write_text("N,loss\n1,2\n")
    with pytest.raises(ValueError, match=r"neither curves.parquet .* it has: \['points.csv'\]"):
        load_rows(str(tmp_path))
