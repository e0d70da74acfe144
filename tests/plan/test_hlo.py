"""What is counted in compiled programs: texts of libtpu, which tests/golden/plan_hlo.py regenerates."""

import gzip
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from adaptlab import shard
from adaptlab.plan import collectives, parse_hlo, totals, work
from adaptlab.plan.collectives import replica_groups

GOLDEN = Path(__file__).parents[1] / "golden"
LAYERS, WIDTH, FFN, ROWS = 6, 2048, 8192, 8192
WEIGHT = WIDTH * FFN * 2 // 2  # bytes of one bfloat16 matrix on one of two tensor devices


@pytest.fixture(scope="module")
def one_slice():
    return parse_hlo(gzip.decompress((GOLDEN / "plan_v5e_2x4.hlo.gz").read_bytes()).decode())


@pytest.fixture(scope="module")
def two_slices():
    return parse_hlo(gzip.decompress((GOLDEN / "plan_v5e_2x4_2_slices.hlo.gz").read_bytes()).decode())


def test_matrix_products_of_scanned_layers_are_those_of_all_layers(one_slice, two_slices):
    # Two products forward, four backward, and x U again for the backward pass is kept, not recomputed.
    exact = LAYERS * 6 * 2 * WIDTH * FFN * ROWS / 8
    assert work(one_slice).flops == exact
    assert work(two_slices).flops == exact  # one turn of the loop was taken out of it
    assert not one_slice.unknown
    assert not two_slices.unknown


LOOP = """HloModule loop, is_scheduled=true

%sliced (p.0: f32[10,4,8], p.1: s32[]) -> f32[4,8] {
  %p.0 = f32[10,4,8]{2,1,0} parameter(0)
  %p.1 = s32[] parameter(1)
  %c.1 = s32[] constant(0)
  %flat.1 = f32[10,4,8]{2,1,0} bitcast(%p.0)
  %slice.1 = f32[1,4,8]{2,1,0} dynamic-slice(%flat.1, %p.1, %c.1, %c.1), dynamic_slice_sizes={1,4,8}
  ROOT %square.1 = f32[4,8]{1,0:T(8,128)S(1)} multiply(%slice.1, %slice.1)
}

%body (b.0: (s32[], f32[10,4,8])) -> (s32[], f32[10,4,8]) {
  %b.0 = (s32[], f32[10,4,8]{2,1,0}) parameter(0)
  %i.1 = s32[]{:T(128)S(6)} get-tuple-element(%b.0), index=0
  %w.1 = f32[10,4,8]{2,1,0} get-tuple-element(%b.0), index=1
  %fusion.1 = f32[4,8]{1,0:T(8,128)S(1)} fusion(%w.1, %i.1), kind=kLoop, calls=%sliced
  %copy-start.1 = (f32[4,8]{1,0}, f32[4,8]{1,0:S(1)}, u32[]{:S(2)}) copy-start(%fusion.1)
  %copy-done.1 = f32[4,8]{1,0} copy-done(%copy-start.1)
  %one.1 = s32[]{:T(128)S(6)} constant(1)
  %next.1 = s32[]{:T(128)S(6)} add(%i.1, %one.1)
  ROOT %t.1 = (s32[], f32[10,4,8]{2,1,0}) tuple(%next.1, %w.1)
}

%condition (d.0: (s32[], f32[10,4,8])) -> pred[] {
  %d.0 = (s32[], f32[10,4,8]{2,1,0}) parameter(0)
  %j.1 = s32[] get-tuple-element(%d.0), index=0
  %end.1 = s32[] constant(10)
  ROOT %lt.1 = pred[]{:T(512)S(6)} compare(%j.1, %end.1), direction=LT
}

ENTRY %main (x.0: f32[10,4,8]) -> (s32[], f32[10,4,8]) {
  %x.0 = f32[10,4,8]{2,1,0} parameter(0)
  %zero.1 = s32[] constant(START)
  %s.1 = (s32[], f32[10,4,8]{2,1,0}) tuple(%zero.1, %x.0)
  ROOT %while.1 = (s32[], f32[10,4,8]{2,1,0}) while(%s.1), condition=%condition, body=%body
}
"""


@pytest.mark.parametrize(("start", "turns"), [(0, 10), (1, 9)])
def test_a_loop_reads_the_slice_of_each_turn_and_copies_out_of_vector_memory(start: int, turns: int):
    module = parse_hlo(LOOP.replace("START", str(start)))
    compared = 8 * turns  # the condition reads a counter and a bound of 4 bytes
    assert work(module).bytes == turns * (4 * 8 * 4 + 4 * 8 * 4) + compared


def test_fsdp_and_tensor_parallel_layers_communicate_as_the_textbook_says(one_slice):
    found = collectives(one_slice, {"data": 1, "fsdp": 4, "tensor": 2})
    rows = {(one["kind"], tuple(one["axes"])): one for one in totals(found)}
    gathered = rows["all-gather", ("fsdp",)]
    # once: the backward pass finds the gathered copies kept
    assert gathered["count"] == 2 * LAYERS
    assert gathered["bytes"] == 2 * LAYERS * WEIGHT * 3 / 4
    assert rows["reduce-scatter", ("fsdp",)]["count"] == 2 * LAYERS
    assert rows["reduce-scatter", ("fsdp",)]["bytes"] == pytest.approx(2 * LAYERS * WEIGHT * 3 / 4, rel=0.02)  # padding
    assert rows["all-reduce", ("tensor",)]["count"] == 2 * LAYERS
    assert rows["all-reduce", ("tensor",)]["bytes"] == 2 * LAYERS * 2 * (ROWS / 4 * WIDTH * 2) / 2
    assert not any(one["crosses_slices"] for one in rows.values())


def test_only_data_parallel_gradients_cross_slices(two_slices):
    found = collectives(two_slices, {"data": 2, "fsdp": 4, "tensor": 2}, [0] * 8 + [1] * 8)
    across = [one for one in found if one.crosses]
    assert {one.axes for one in across} == {("data",)}
    assert {one.axes for one in found if not one.crosses} == {("fsdp",), ("tensor",)}
    assert sum(one.runs for one in across) == 2 * LAYERS
    assert sum(one.runs * one.bytes for one in across) == 2 * LAYERS * WEIGHT / 4


@pytest.mark.parametrize(
    ("said", "groups"),
    [
        ("replica_groups={{0,1},{2,3}}, x", [(0, 1), (2, 3)]),
        ("replica_groups={}, x", [(0, 1, 2, 3)]),
        ("replica_groups=[2,2]<=[4], x", [(0, 1), (2, 3)]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a'}, x", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=2,'b'=2] {'a','b'}, x", [(0, 1, 2, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, x", [(0, 2), (1, 3)]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, x", [(0, 1), (2, 3)]),
        ("source_target_pairs={{0,2},{2,0},{1,3},{3,1}}, x", [(0, 2), (1, 3)]),
    ],
)
def test_every_way_of_writing_groups_is_read(said: str, groups: list[tuple[int, ...]]):
    assert replica_groups(said, 4) == groups


def test_an_unknown_way_of_writing_groups_is_an_error_not_a_guess():
    with pytest.raises(ValueError, match="cannot read the groups"):
        replica_groups("replica_groups=@somewhere", 4)


def test_what_is_no_compiled_program_is_refused():
    with pytest.raises(ValueError, match="no ENTRY computation"):
        parse_hlo("HloModule nothing")


def test_a_program_of_this_machines_compiler_is_counted_too():
    mesh = shard.make_mesh(data=4, tensor=2)

    def on(*axes: str | None) -> NamedSharding:
        return NamedSharding(mesh, PartitionSpec(*axes))

    def f(w: jax.Array, x: jax.Array) -> jax.Array:
        def layer(h: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return jnp.tanh(h @ w), None

        return jnp.sum(jax.lax.scan(layer, x, w)[0])

    w = jax.ShapeDtypeStruct((3, 16, 16), jnp.float32, sharding=on())
    x = jax.ShapeDtypeStruct((8, 16), jnp.float32, sharding=on("data"))
    module = parse_hlo(jax.jit(jax.grad(f), out_shardings=on()).lower(w, x).compile().as_text())
    assert work(module).flops == 3 * 3 * 2 * (8 / 4) * 16 * 16  # forward, and the gradients of both factors
    rows = totals(collectives(module, dict(mesh.shape)))
    assert {(one["kind"], *one["axes"]) for one in rows} == {("all-reduce", "data")}
