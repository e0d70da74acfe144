"""Memory by kind, from the two texts that XLA writes of its buffers (in the form of libtpu 0.0.42)."""

from pathlib import Path

import pytest

from adaptlab.plan import parse_hlo
from adaptlab.plan.memory import KINDS, read_memory

HLO = """HloModule jit_step, is_scheduled=true

ENTRY %main (param.0: f32[8,4], param.1: f32[4,4], param.2: f32[4,4], param.3: s32[2,8]) -> f32[4,4] {
  %param.0 = f32[8,4]{1,0:T(8,128)} parameter(0), metadata={op_name="base[\\'layers\\'][\\'kernel\\']"}
  %param.1 = f32[4,4]{1,0} parameter(1), metadata={op_name="state.delta[\\'layers\\'][\\'kernel\\'][\\'a\\']"}
  %param.2 = f32[4,4]{1,0} parameter(2), metadata={op_name="state.opt_state[1].mu[\\'layers\\']"}
  %param.3 = s32[2,8]{1,0} parameter(3), metadata={op_name="batch.tokens"}
  %while.1 = (s32[], bf16[4,2,8]{2,1,0}) tuple(%param.3), metadata={op_name="jit(step)/jvp(_Llama)/while"}
  %fusion.2 = f32[4,4]{1,0} add(%param.1, %param.2), metadata={op_name="jit(step)/transpose(jvp(_Llama))/layers/mul"}
  ROOT %add.3 = f32[4,4]{1,0} add(%fusion.2, %param.1)
}
"""
ASSIGNMENT = """BufferAssignment:
allocation 0: size 4096, parameter 0, shape |f32[8,4]| at ShapeIndex {}:
 value: <1 param.0 @0> (size=4096,offset=0): f32[8,4]{1,0:T(8,128)}
allocation 1: size 64, parameter 1, shape |f32[4,4]| at ShapeIndex {}, maybe-live-out:
allocation 2: size 64, parameter 2, shape |f32[4,4]| at ShapeIndex {}, maybe-live-out:
allocation 3: size 512, parameter 3, shape |s32[2,8]| at ShapeIndex {}:
allocation 4: size 1000, preallocated-temp:
 value: <5 while.1{1} @0> (size=128,offset=0): bf16[4,2,8]{2,1,0}
allocation 5: size 777, color 1, preallocated-temp:
"""
RANGES = """HloLiveRange (max 7):
  Live ranges at 5 (peak):
    fusion.2{}: 640 bytes (cumulative: 640 bytes)
    while.1{1}: 128 bytes (cumulative: 768 bytes)
    param.0{}: 4096 bytes (cumulative: 4864 bytes)
  Stack trace breakdown for peak usage: 4 864 bytes
    while.1{1}: 999 bytes is of no interest here
"""


@pytest.fixture
def dump(tmp_path: Path) -> Path:
    (tmp_path / "module_0000.jit_step.after_optimizations-buffer-assignment.txt").write_text(ASSIGNMENT)
    (tmp_path / "module_0000.jit_step.after_optimizations-live-range.txt").write_text(RANGES)
    return tmp_path


def test_arguments_count_with_their_padding_and_the_heap_is_split_by_the_pass_that_fills_it(dump: Path):
    memory = read_memory(dump, parse_hlo(HLO), code=50, beyond=8)
    kinds = {"base": 4096, "delta": 64, "optimiser": 64, "batch": 512, "activations": 128, "program": 50}
    assert memory.kinds == kinds | {"temporaries": 1000 + 8 - 128}  # what lies on the chip (color 1) is not in it
    assert set(memory.kinds) == set(KINDS)
    assert memory.total == 4096 + 64 + 64 + 512 + 1000 + 8 + 50


def test_the_largest_buffers_are_named_by_what_makes_them(dump: Path):
    first, second, *_ = read_memory(dump, parse_hlo(HLO), count=3).largest
    assert (first.what, first.shape, first.kind) == ("base['layers']['kernel']", "f32[8,4]", "base")
    assert (second.bytes, second.kind) == (640, "temporaries")
    assert second.what == "jit(step)/transpose(jvp(_Llama))/layers/mul"


def test_a_compiler_that_wrote_nothing_is_said(tmp_path: Path):
    with pytest.raises(ValueError, match="no buffer assignment"):
        read_memory(tmp_path, parse_hlo(HLO))
