import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from adaptlab.report.files import replace, save_json, to_json
from adaptlab.stats import interval


def test_json_has_null_where_a_number_is_not_finite(tmp_path):
    save_json(tmp_path / "a.json", {"x": math.nan, "y": [np.float32(math.inf)], "i": interval([1.0])})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {
        "x": None,
        "y": [None],
        "i": {"mean": 1.0, "low": None, "high": None, "n": 1, "sd": None},
    }


def test_arrays_tuples_sets_and_paths_become_plain_types():
    value = {"a": np.arange(2), "b": (1, True), "c": {"y", "x"}, "d": Path("p/q"), 3: None}
    assert to_json(value) == {"a": [0, 1], "b": [1, True], "c": ["x", "y"], "d": "p/q", "3": None}


def test_what_json_cannot_hold_is_named():
    with pytest.raises(TypeError, match="of type object"):
        to_json({"a": object()})


def test_a_failed_write_leaves_the_old_file_and_no_rubbish(tmp_path, monkeypatch):
    replace(tmp_path / "f", b"old")

    def full_disk(fd):
        raise OSError("no space")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        replace(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["f"]
