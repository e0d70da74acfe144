import json

from adaptlab.report.curves import make_curves, save_curves
from adaptlab.report.scaling.inputs import load_rows


def test_a_studys_folder_gives_a_row_for_each_run_with_its_attributes_and_last_metrics(tmp_path):
    rows = [
        ("a", 0, "loss", 5.0),
        ("a", 8, "loss", 3.0),
        ("b", 0, "loss", 6.0),
        ("b", 4, "loss", 4.0),
        ("b", 4, "acc", 0.5),
    ]
    save_curves(tmp_path / "curves.parquet", make_curves(rows))
    runs = {
        "a": {"method": "full", "lr": 1e-3, "tags": ["x"]},
        "b": {"method": "lora", "lr": 1e-2, "diverged_at": None},
    }
    (tmp_path / "runs.json").write_text(json.dumps(runs))
    last = load_rows(str(tmp_path))
    assert last.columns["run"].tolist() == ["a", "b"]
    assert last.columns["step"].tolist() == [8, 4]
    assert last.columns["loss"].tolist() == [3.0, 4.0]
    assert last.columns["method"].tolist() == ["full", "lora"]
    assert last.columns["acc"].tolist()[1] == 0.5
    every = load_rows(str(tmp_path), every_step=True)
    assert sorted(zip(every.columns["run"], every.columns["step"], every.columns["loss"], strict=True)) == [
        *[("a", 0.0, 5.0), ("a", 8.0, 3.0), ("b", 0.0, 6.0), ("b", 4.0, 4.0)]
    ]
