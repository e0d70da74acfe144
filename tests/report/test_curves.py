import math
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from adaptlab.report import curves
from adaptlab.report.sink import Row, journal

ROWS = [
    ("b", 20, "held_out/news/loss", 3.5),
    ("a", 20, "held_out/news/loss", 1 / 3),
    ("a", 0, "held_out/news/loss", math.nan),
    ("a", 1, "train/loss", math.inf),
]


def test_curves_come_back_from_disk_bit_by_bit_and_sorted(tmp_path):
    table = curves.make_curves(ROWS)
    curves.save_curves(tmp_path / "curves.parquet", table)
    loaded = curves.load_curves(tmp_path / "curves.parquet")
    assert loaded.schema.names == ["run", "step", "metric", "value"]
    assert [(r["run"], r["metric"], r["step"]) for r in loaded.to_pylist()] == [
        *[("a", "held_out/news/loss", 0), ("a", "held_out/news/loss", 20)],
        *[("a", "train/loss", 1), ("b", "held_out/news/loss", 20)],
    ]
    assert loaded["value"].to_numpy().tobytes() == np.array([math.nan, 1 / 3, math.inf, 3.5]).tobytes()
    assert os.listdir(tmp_path) == ["curves.parquet"]


def test_the_file_does_not_depend_on_the_order_of_rows(tmp_path):
    curves.save_curves(tmp_path / "1", curves.make_curves(ROWS))
    curves.save_curves(tmp_path / "2", curves.make_curves(ROWS[::-1]))
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


def test_journals_become_one_table(tmp_path):
    sink = journal(tmp_path / "j")
    sink.write(0, {"x": 1.0, "y": 2.0})
    sink.close()
    table = curves.from_journals({"a": tmp_path / "j", "b": [Row(4, {"x": 5.0})]})
    assert [tuple(r.values()) for r in table.to_pylist()] == [
        *[("a", 0, "x", 1.0), ("a", 0, "y", 2.0), ("b", 4, "x", 5.0)]
    ]
    assert curves.runs(table) == ["a", "b"]
    assert curves.metrics(table) == ["x", "y"]
    assert curves.metrics(table, "b") == ["x"]


def test_a_series_is_ordered_by_step():
    got = curves.series(curves.make_curves([("a", s, "m", s / 2) for s in (10, 2, 7)]), "a", "m")
    assert got.steps_N.tolist() == [2, 7, 10]
    assert got.values_N.tolist() == [1.0, 3.5, 5.0]


def test_two_values_at_one_step_are_refused():
    with pytest.raises(ValueError, match=r"Run 'a' has 2 values of 'train/loss' at step 1\."):
        curves.make_curves([*ROWS, ROWS[-1]])


def test_what_is_missing_is_named_with_what_there_is(tmp_path):
    table = curves.make_curves(ROWS)
    with pytest.raises(KeyError, match=r"run 'a' has the metrics \['held_out/news/loss', 'train/loss'\]"):
        curves.series(table, "a", "loss")
    with pytest.raises(KeyError, match=r"the runs are \['a', 'b'\]"):
        curves.series(table, "c", "train/loss")
    pq.write_table(pa.table({"step": [1]}), tmp_path / "other")
    with pytest.raises(ValueError, match=r"has the columns \['step'\]"):
        curves.load_curves(tmp_path / "other")


def test_no_rows_make_an_empty_table():
    assert curves.make_curves([]).num_rows == 0
