import math
import os
import signal
import subprocess
import sys

import numpy as np
import pytest

from adaptlab.report.sink import Row, Sink, journal, null, read_journal, tee, truncate_journal


def _journal(path, rows):
    sink = journal(path)
    for step, metrics in rows:
        sink.write(step, metrics)
    sink.close()


def test_floats_come_back_bit_by_bit(tmp_path):
    values = [0.1, 1 / 3, 5e-324, -0.0, math.nan, math.inf, -math.inf, float(np.float32(0.1)), 2.0**70]
    _journal(tmp_path / "run" / "journal.jsonl", [(7, {f"m/{i}": v for i, v in enumerate(values)})])
    (row,) = read_journal(tmp_path / "run" / "journal.jsonl")
    assert row.step == 7
    assert np.array(list(row.metrics.values())).tobytes() == np.array(values).tobytes()


def test_scalars_of_numpy_are_written_as_their_exact_value(tmp_path):
    _journal(tmp_path / "j", [(np.int64(3), {"loss": np.float32(0.1)})])
    assert read_journal(tmp_path / "j") == [Row(3, {"loss": float(np.float32(0.1))})]


def test_opening_again_appends(tmp_path):
    _journal(tmp_path / "j", [(0, {"a": 1.0})])
    _journal(tmp_path / "j", [(1, {"a": 2.0})])
    assert read_journal(tmp_path / "j") == [Row(0, {"a": 1.0}), Row(1, {"a": 2.0})]


def test_a_journal_torn_at_any_byte_keeps_every_whole_line_and_can_be_continued(tmp_path):
    path = tmp_path / "j"
    rows = [Row(0, {"loss": 1.25}), Row(1, {"loss": math.inf}), Row(2, {"loss": 0.5})]
    _journal(path, rows)
    content = path.read_bytes()
    for size in range(len(content) + 1):
        path.write_bytes(content[:size])
        whole = rows[: content[:size].count(b"\n")]
        assert read_journal(path) == whole
        _journal(path, [Row(9, {"loss": 9.0})])
        assert read_journal(path) == [*whole, Row(9, {"loss": 9.0})]


@pytest.mark.parametrize("damage", [b'{"step": 1, "lo\n', b"\x00\x00\n", b"[1]\n", b'{"loss": 1.0}\n', b"\n"])
def test_any_other_damage_is_named_by_its_line(tmp_path, damage):
    (tmp_path / "j").write_bytes(b'{"step": 0, "loss": 1.0}\n' + damage + b'{"step": 2, "loss": 1.0}\n')
    with pytest.raises(ValueError, match=r"j, line 2 is damaged"):
        read_journal(tmp_path / "j")


def test_truncating_keeps_exactly_the_rows_before_the_step(tmp_path):
    _journal(tmp_path / "j", [(s, {"loss": float(s)}) for s in range(6)] + [(5, {"late": 1.0})])
    with (tmp_path / "j").open("ab") as file:
        file.write(b'{"step": 6, "lo')
    truncate_journal(tmp_path / "j", 4)
    assert [row.step for row in read_journal(tmp_path / "j")] == [0, 1, 2, 3]
    assert os.listdir(tmp_path) == ["j"]


def test_a_lost_journal_is_an_error_unless_the_run_starts_over(tmp_path):
    truncate_journal(tmp_path / "j", 0)
    with pytest.raises(FileNotFoundError):
        truncate_journal(tmp_path / "j", 4)


def test_a_metric_cannot_take_the_steps_place(tmp_path):
    sink = journal(tmp_path / "j")
    with pytest.raises(ValueError, match="cannot be named 'step'"):
        sink.write(0, {"step": 1.0})
    sink.close()


def test_a_killed_process_loses_no_written_row(tmp_path):
    code = (
        "import sys; from adaptlab.report.sink import journal; s = journal(sys.argv[1]); i = 0\n"
        "while True:\n    s.write(i, {'loss': i / 7}); i += 1; print(i, flush=True)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "j")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    told = 0
    while told < 200:
        told = int(process.stdout.readline())
    process.send_signal(signal.SIGKILL)
    process.communicate()
    rows = read_journal(tmp_path / "j")
    assert rows == [Row(i, {"loss": i / 7}) for i in range(len(rows))]
    assert len(rows) >= told


def test_tee_passes_everything_to_each_and_closes_all_though_one_fails():
    seen = []

    def recorder(name, fails=False):
        def close():
            seen.append((name, "close"))
            if fails:
                raise OSError(name)

        return Sink(lambda step, m: seen.append((name, step, m)), lambda: seen.append((name, "flush")), close)

    sink = tee(recorder("a", fails=True), null(), recorder("b"))
    sink.write(1, {"x": 2.0})
    sink.flush()
    with pytest.raises(OSError, match="a"):
        sink.close()
    assert seen == [
        *[("a", 1, {"x": 2.0}), ("b", 1, {"x": 2.0})],
        *[("a", "flush"), ("b", "flush"), ("a", "close"), ("b", "close")],
    ]
