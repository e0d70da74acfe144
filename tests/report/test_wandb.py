import logging
import os
import struct
import subprocess
import sys
import threading

import pytest

from adaptlab.report.wandb import _logged_in, wandb_sink

SETTINGS = {"project": "p", "name": "lora/lr=0.001/seed=0", "group": "study", "config": {"rank": 8}}


@pytest.fixture(autouse=True)
def _no_account(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("WANDB")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)


def _history(path):
    """The rows in a .wandb file: a LevelDB log (7-byte header, blocks of 32 KiB) of protobuf records."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, at, record, rows = path.read_bytes(), 7, b"", []
    while at < len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        _, length, kind = struct.unpack("<IHB", content[at : at + 7])
        record += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # the record is whole: FULL or LAST
            message = Record.FromString(record)
            if message.HasField("history"):
                items = message.history.item
                rows.append({i.key or "/".join(i.nested_key): i.value_json for i in items})
            record = b""
    return rows


def _offline(code, tmp_path):
    """Run W&B in its own process: its service outlives the run."""
    return subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, timeout=120
    )


WRITE = """
import sys
from adaptlab.report.wandb import wandb_sink
def member(seed):
    return wandb_sink("p", name=f"seed={seed}", group="g", config={"lr": float("nan")},
                      dir=f"{sys.argv[1]}/{seed}", timeout=60)
side_by_side = [member(0), member(1)]
for step in (0, 20, 20):
    for seed, sink in enumerate(side_by_side):
        sink.write(step, {"held_out/news/loss": step + seed + 1 / 3})
for sink in side_by_side:
    sink.close(); sink.close()
afterwards = member(0)
afterwards.write(10, {"held_out/news/loss": 5.0})
afterwards.close()
"""


def test_offline_runs_hold_the_values_on_their_own_step_axis_and_say_nothing(tmp_path):
    done = _offline(WRITE, tmp_path)
    assert done.stdout + done.stderr == ""
    first, resumed = sorted(tmp_path.glob("0/wandb/offline-run-*/*.wandb"), key=lambda p: p.stat().st_mtime)
    assert first.name == resumed.name  # the same W&B run
    for path, values in {first: [1 / 3, 61 / 3, 61 / 3], resumed: [5.0]}.items():
        assert [float(row["held_out/news/loss"]) for row in _history(path)] == values
    assert [int(row["step"]) for row in _history(first)] == [0, 20, 20]
    (other,) = tmp_path.glob("1/wandb/offline-run-*/*.wandb")
    assert [float(row["held_out/news/loss"]) for row in _history(other)] == [4 / 3, 64 / 3, 64 / 3]
    assert other.name != first.name


def test_a_wandb_that_raises_costs_one_warning_and_nothing_else(tmp_path, monkeypatch, caplog):
    import wandb

    def broken(**settings):
        raise RuntimeError("no service")

    monkeypatch.setattr(wandb, "init", broken)
    sink = wandb_sink(**SETTINGS, dir=tmp_path, mode="online")
    for step in range(100):
        sink.write(step, {"loss": 1.0})
    sink.close()
    (warning,) = caplog.records
    assert warning.levelno == logging.WARNING
    assert "no service" in warning.message
    assert SETTINGS["name"] in warning.message


def test_online_falls_back_to_offline(tmp_path, monkeypatch, caplog):
    import wandb

    modes, rows = [], []

    class Run:
        def define_metric(self, *args, **options):
            pass

        def log(self, row):
            rows.append(row)

        def finish(self):
            pass

    def init(*, mode, **settings):
        modes.append(mode)
        if mode == "online":
            raise ConnectionError("no route")
        return Run()

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    sink = wandb_sink(**SETTINGS, dir=tmp_path)
    sink.write(3, {"loss": 1.0})
    sink.close()
    assert modes == ["online", "offline"]
    assert rows == [{"step": 3, "loss": 1.0}]
    assert len(caplog.records) == 1


def test_a_wandb_that_hangs_neither_blocks_writing_nor_closing(tmp_path, monkeypatch, caplog):
    import wandb

    forever = threading.Event()
    monkeypatch.setattr(wandb, "init", lambda **settings: forever.wait() and None)
    sink = wandb_sink(**SETTINGS, dir=tmp_path, mode="offline", timeout=0.05, capacity=10)
    for step in range(1000):
        sink.write(step, {"loss": 1.0})  # the test would time out if the full queue were waited for
    assert "10 rows wait" in caplog.text
    sink.close()
    assert len(caplog.records) == 1
    forever.set()


def test_a_finish_that_hangs_is_left_behind(tmp_path, monkeypatch, caplog):
    import wandb

    forever = threading.Event()

    class Run:
        define_metric = log = lambda *args, **options: None

        def finish(self):
            forever.wait()

    monkeypatch.setattr(wandb, "init", lambda **settings: Run())
    sink = wandb_sink(**SETTINGS, dir=tmp_path, mode="offline", timeout=0.05)
    sink.close()
    assert "left behind" in caplog.text
    forever.set()


@pytest.mark.parametrize("how", ["argument", "environment"])
def test_disabled_starts_no_thread(tmp_path, monkeypatch, how):
    if how == "environment":
        monkeypatch.setenv("WANDB_MODE", "disabled")
    before = threading.active_count()
    sink = wandb_sink(**SETTINGS, dir=tmp_path, mode="disabled" if how == "argument" else "auto")
    sink.write(0, {"loss": 1.0})
    sink.close()
    assert threading.active_count() == before
    assert os.listdir(tmp_path) == []


def test_an_unknown_mode_is_refused_with_the_choices(tmp_path):
    with pytest.raises(ValueError, match="'onlin' is not one of auto, online, offline, disabled"):
        wandb_sink(**SETTINGS, dir=tmp_path, mode="onlin")


def test_credentials_are_found_in_the_environment_and_in_netrc(tmp_path, monkeypatch):
    assert not _logged_in()
    netrc = tmp_path / "netrc"
    netrc.write_text("machine example.org login a password b\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    assert not _logged_in()
    netrc.write_text("machine api.wandb.ai login user password " + "k" * 40 + "\n")
    assert _logged_in()
    monkeypatch.delenv("NETRC")
    monkeypatch.setenv("WANDB_API_KEY", "k" * 40)
    assert _logged_in()
