"""What makes a job fit, and the largest batch, with a compiler of which the memory is known."""

from typing import Any

import pytest

from adaptlab import config
from adaptlab.plan import Costs, Job, Plan, assess, largest_batch, suggestions
from adaptlab.plan.planner import memory_per_chip

GIB = 2**30
COSTS = Costs(tokens=1e6, power=None, pue=1.1, grid=0.4)


def job(*overrides: str) -> Job:
    node = config.compose("plan", list(overrides))
    job = Job(**{name: node[name] for name in Job._fields})
    return job._replace(**{name: config.validate(node[name], name) for name in ("model", "adapt", "optim", "mesh")})


class Compiler:
    """Memory in proportion to the rows of a microbatch; a base of 12 GiB, half of it in bfloat16, an eighth in NF4."""

    def __init__(self, per_row: float, base: float = 1.0, trained: int = 1) -> None:
        self.per_row, self.base, self.trained, self.jobs = per_row, base, trained, []

    def __call__(self, job: Job) -> dict[str, Any]:
        self.jobs.append(job)
        mesh = {"replica": 1, "stage": 1, "data": 4, "fsdp": 1, "expert": 1, "context": 1, "tensor": 1}
        mesh |= {axis: size for axis, size in job.mesh.items() if axis in mesh and size > 0}
        size = 0.125 if job.quantize else {"float32": 1.0, "bfloat16": 0.5}[job.base_dtype]
        kinds = {
            "base": int(self.base * GIB * size / mesh["fsdp"]),
            "activations": int(self.per_row * GIB * job.batch_size / job.accumulate / 4),
        }
        memory = dict.fromkeys(("delta", "optimiser", "batch", "temporaries", "program"), 0) | kinds
        fits = sum(memory.values()) < 15 * GIB
        about = {"parameters": 100, "trained": self.trained, "model_flops": 1, "mesh": mesh, "work": None}
        return {"fits": fits, "memory": memory, "held": 0, "collectives": [], "coordinates": [], **about}


def planned(compiler: Compiler, *overrides: str) -> tuple[Plan, Any]:
    def again(job: Job) -> Plan:
        return assess(job, compiler, COSTS, "cpu")

    return again(job(*overrides)), again


def test_working_memory_that_is_too_large_is_mended_by_microbatches():
    first, again = planned(Compiler(per_row=8.0), "mesh.data=4", "batch_size=32")
    assert not first.fits
    assert first.limit == "memory capacity"
    found, _ = suggestions(first, again, 8)
    assert found[0]["overrides"] == ["accumulate=8"]
    assert found[0]["memory"] < 15 * GIB


def test_weights_that_are_too_large_are_shared_out_before_they_are_rounded():
    first, again = planned(Compiler(per_row=0.1, base=24.0), "mesh.data=4")
    found, tried = suggestions(first, again, 8)
    assert found[0]["overrides"] == ["mesh.data=1", "mesh.fsdp=4"]
    assert not tried


def test_changes_add_up_where_none_is_enough():
    first, again = planned(Compiler(per_row=8.0, base=120.0), "mesh.data=4", "batch_size=32")
    found, tried = suggestions(first, again, 12)
    assert set(found[0]["overrides"]) > {"mesh.fsdp=4", "accumulate=8"}
    assert all("GiB" in one for one in tried)


def test_so_many_are_compiled_and_no_more():
    compiler = Compiler(per_row=8.0, base=1e6)
    first, again = planned(compiler, "mesh.data=4", "batch_size=32")
    found, tried = suggestions(first, again, 3)
    assert (found, len(tried), len(compiler.jobs)) == ([], 3, 4)


def test_full_fine_tuning_is_told_of_adapters():
    first, again = planned(Compiler(per_row=0.1, base=24.0, trained=100), "mesh.data=1", "mesh.fsdp=1", "adapt=full")
    found, _ = suggestions(first, again, 8)
    assert found[0]["overrides"] == ["adapt=lora", "base_dtype=bfloat16"]


@pytest.mark.parametrize("start", [4, 16, 1024])
def test_the_largest_batch_is_found_from_below_and_from_above(start: int):
    first, again = planned(Compiler(per_row=1.0), "mesh.data=4", f"batch_size={start}")
    most = largest_batch(first, again, 12)
    # 1 GiB a row and chip, a base of 1 GiB: 13 rows of each of four chips stay below 15 GiB
    assert (most["batch_size"], most["refused"]) == (52, 56)
    assert len(most["tried"]) <= 12


def test_a_base_that_the_step_does_not_read_is_still_held():
    kinds = dict.fromkeys(("base", "delta", "optimiser", "batch", "activations", "temporaries", "program"), 1)
    assert memory_per_chip({"memory": kinds, "held": 7})["kept"] == 7
    assert memory_per_chip({"memory": None, "held": 0}) == {}
