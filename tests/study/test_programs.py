"""How many runs a program takes at a time, and how, is decided once and kept."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from adaptlab import config
from adaptlab.study import Replication, members, run
from adaptlab.study.programs import _decide, plan

GIB = 2**30
RECIPE = {
    "adapt": {"_target_": "adaptlab.adapt.full"},
    "optim": {"_target_": "adaptlab.optim.sgd", "lr": 0.1},
}


class Bench:
    """Half a GiB of base, and one GiB for each slot on a device; the batched way is slower or faster as one says."""

    def __init__(self, replica: int = 1, faster: str = "map", crowd: int | None = None) -> None:
        (self.member,) = members({"plain": config.validate(RECIPE)}, [0])
        self.replica, self.faster, self.crowd = replica, faster, crowd
        self.base = {"w": np.zeros(GIB // 8, np.float32)}
        self.compiled: list[tuple[int, str]] = []

    def replicas(self, slots: int, how: str) -> Any:
        self.compiled.append((slots, how))
        return SimpleNamespace(slots=slots, how=how, memory_bytes=GIB // 2 + GIB * slots // self.replica)

    def seconds(self, replicas: Any) -> float:
        crowded = self.crowd is not None and replicas.slots > self.crowd
        return (1.0 if replicas.how == self.faster else 2.0) + crowded


def decided(count: int, folder: Path, bench: Bench | None = None, **options: Any) -> tuple[int, Any]:
    folder.mkdir(exist_ok=True)
    return _decide(bench or Bench(), count, folder, Replication(**options))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("faster", ["vmap", "map"])
def test_the_faster_way_is_taken(faster: str, tmp_path: Path):
    assert decided(8, tmp_path, Bench(faster=faster), memory_gib=100) == (8, faster)


def test_more_slots_are_taken_only_if_they_do_not_slow_each_other(tmp_path: Path):
    assert decided(60, tmp_path / "free", Bench(), memory_gib=100) == (60, "map")
    assert decided(60, tmp_path / "crowded", Bench(crowd=10), memory_gib=100) == (4, "map")


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
    assert [kept["slots"] for kept in json.loads((tmp_path / "programs.json").read_text()).values()] == [8]


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
