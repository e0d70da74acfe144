"""How many runs a program takes at a time, and how, is decided once and kept."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adaptlab import config
from adaptlab.study import Replication, members, run
from adaptlab.study.programs import plan
from adaptlab.study.trials import decide

GIB = 2**30
RECIPE = {
    "adapt": {"_target_": "adaptlab.adapt.full"},
    "optim": {"_target_": "adaptlab.optim.sgd", "lr": 0.1},
}


class Bench:
    """Half a GiB of base, and one GiB for each slot on a device; the batched way is slower or faster as one says."""

    def __init__(self, replica: int = 1, faster: str = "map", crowded: float = 1.0) -> None:
        (self.member,) = members({"plain": config.validate(RECIPE)}, [0])
        self.replica, self.faster, self.crowded = replica, faster, crowded
        self.base = {"w": np.zeros(GIB // 8, np.float32)}
        self.compiled: list[tuple[int, str]] = []

    def replicas(self, slots: int, how: str) -> Any:
        self.compiled.append((slots, how))
        return SimpleNamespace(slots=slots, how=how, memory_bytes=GIB // 2 + GIB * slots // self.replica)

    def seconds(self, replicas: Any) -> float:
        return (1.0 if replicas.how == self.faster else 2.0) * (self.crowded if replicas.slots > 4 else 1.0)

    def seconds_alone(self) -> float:
        return 2.0 if self.faster == "vmap" else 1.0

    def identity(self, count: int, replication: Replication) -> str:
        return f"{count}_{replication.memory_gib}"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ADAPTLAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def decided(count: int, folder: Path, bench: Bench | None = None, **options: Any) -> tuple[int, Any]:
    folder.mkdir(exist_ok=True)
    return decide(bench or Bench(), count, folder, Replication(**options))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("faster", ["vmap", "map"])
def test_the_faster_way_is_taken(faster: str, tmp_path: Path):
    assert decided(8, tmp_path, Bench(2, faster), memory_gib=100) == (8, faster)


def test_runs_that_take_turns_on_one_device_need_no_slots_unless_asked_for(tmp_path: Path):
    assert decided(8, tmp_path / "vmap", Bench(faster="vmap"), memory_gib=100) == (4, "vmap")
    assert decided(8, tmp_path / "alone", memory_gib=101) == (1, "alone")
    assert decided(8, tmp_path / "map", memory_gib=102, slots=3) == (3, "map")


def test_more_slots_are_batched_only_if_that_is_faster(tmp_path: Path):
    for i, (crowded, slots) in enumerate([(0.5, 60), (1.0, 4), (2.0, 4)]):
        bench = Bench(faster="vmap", crowded=crowded)
        assert decided(60, tmp_path / str(i), bench, memory_gib=100 + i) == (slots, "vmap")


def test_what_was_measured_is_remembered_for_the_same_runs_on_the_same_machine(tmp_path: Path, cache: Path):
    first = decided(8, tmp_path / "first", memory_gib=100)
    again = Bench(faster="vmap")
    assert decided(8, tmp_path / "again", again, memory_gib=100) == first
    assert again.compiled == []
    assert decided(9, tmp_path / "other", again, memory_gib=100) == (4, "vmap")
    (next(iter((cache / "programs").glob("8_*")))).unlink()
    assert decided(8, tmp_path / "forgotten", again, memory_gib=100) == (4, "vmap")


def test_as_many_slots_as_fit_into_memory_are_taken(tmp_path: Path):
    assert decided(64, tmp_path, how="map", memory_gib=10.6) == (10, "map")


def test_slots_are_spread_over_the_replica_axis(tmp_path: Path):
    assert decided(9, tmp_path / "a", Bench(replica=4), how="map", memory_gib=100)[0] == 12
    assert decided(64, tmp_path / "b", Bench(replica=4), how="map", memory_gib=3.6)[0] == 12


def test_a_run_that_does_not_fit_is_refused_with_what_it_needs(tmp_path: Path):
    with pytest.raises(ValueError, match=r"plain: one run needs 1.5 GiB of 1.0 GiB; use a smaller batch"):
        decided(4, tmp_path, how="map", memory_gib=1.0)


def test_a_single_run_and_runs_that_are_to_be_alone_are_not_compiled_as_slots(tmp_path: Path):
    bench = Bench()
    assert decided(1, tmp_path / "one", bench) == (1, "alone")
    assert decided(5, tmp_path / "alone", bench, how="alone") == (1, "alone")
    assert bench.compiled == []


def test_a_resumed_study_repeats_its_decision_with_fewer_runs_left(tmp_path: Path):
    first = decided(8, tmp_path, memory_gib=100)
    again = Bench(faster="vmap")
    assert decided(3, tmp_path, again, memory_gib=100) == first
    assert again.compiled == []
    assert [kept["slots"] for kept in json.loads((tmp_path / "programs.json").read_text()).values()] == [1]


def test_the_plan_names_the_keys_that_split_programs(caplog: pytest.LogCaptureFixture):
    other = RECIPE | {"adapt": {"_target_": "adaptlab.adapt.lora", "rank": 4}}
    methods = {name: config.validate(method) for name, method in (("full", RECIPE), ("lora", other))}
    with caplog.at_level("INFO"):
        plan(SimpleNamespace(base={}), members(methods, [0, 1]))  # pyright: ignore[reportArgumentType]
    assert "4 runs are 2 programs, split by adapt._target_" in caplog.text
    assert "adapt.rank" in caplog.text
    assert "full: 2 runs that differ in seed" in caplog.text


def test_a_run_that_fails_alone_does_not_stop_the_next(monkeypatch: pytest.MonkeyPatch):
    def alone(begin: Any, program: Any, base: Any, numbers: Any, seed: int) -> str:
        if seed == 0:
            raise OSError("the disk is full")
        return f"seed {seed}"

    monkeypatch.setattr(run, "alone", alone)
    tasks = [run.Task(m, Path(), m.name, "", {}) for m in members({"plain": config.validate(RECIPE)}, [0, 1])]
    shared: Any = SimpleNamespace(replicas=None, program=None, base=None)
    outcomes = [o for _, o in run._run_group(SimpleNamespace(), tasks, shared, None, False)]  # pyright: ignore
    assert isinstance(outcomes[0], OSError)
    assert outcomes[1] == "seed 1"
