"""Minimal communication: the collectives of a compiled step are the textbook's, and none besides.

Bytes are those that one device sends by a ring: V (n - 1)/n of V bytes for an all-gather or a reduce-scatter, twice
that for an all-reduce. What is left to the compiler is below `SMALL`: sums of scalars and of one number a token.
"""

import functools
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from adaptlab import tree
from adaptlab.plan.collectives import Collective, collectives
from adaptlab.plan.hlo import parse_hlo
from adaptlab.shard import COMPUTE, Placement, make_mesh
from tests.shard.meshes import LENGTH, LLAMA, MESHES, METHODS, MODELS, ROWS, train

D, F, V, L = LLAMA.width, LLAMA.ffn_width, LLAMA.vocab_size, LLAMA.depth
SMALL = 4 * ROWS * LENGTH * 2 + 400  # bytes
FLOAT = 4


def same(placement: Placement) -> Placement:
    return placement


@functools.cache
def compiled(mesh: str, method: str = "full", change: Callable[[Placement], Placement] = same, **options: Any) -> Any:
    """A step's collectives, and the state it starts from."""
    run = train(MODELS["llama"], METHODS[method], MESHES[mesh], steps=0, unroll=1, change=change, **options)
    text = run.program.step.lower(*run.arguments).compile().as_text()
    return collectives(parse_hlo(text), dict(make_mesh(**MESHES[mesh]).shape)), run.arguments[2]


def sent(*args: Any, **kwargs: Any) -> list[Collective]:
    """What a step's devices say to each other."""
    return compiled(*args, **kwargs)[0]


def large(found: list[Collective], kind: str) -> list[Collective]:
    return [one for one in found if one.kind == kind and one.bytes > SMALL]


def total(found: list[Collective], kind: str) -> float:
    return sum(one.runs * one.bytes for one in found if one.kind == kind)


@functools.cache
def sizes() -> dict[str, tuple[int, ...]]:
    model = MODELS["llama"].model()
    return {path: x.shape for path, x in tree.flatten(jax.eval_shape(model.init, jax.random.key(0))).items()}


def parameters(keep: Callable[[str], bool] = lambda path: True) -> int:
    return sum(int(np.prod(shape)) for path, shape in sizes().items() if keep(path))


def assert_nothing_whole(found: list[Collective]) -> None:
    """No all-gather of a stack of layers, and none of logits or a table, but for a head that is not shared out."""
    gathered = {shape for one in found if one.kind == "all-gather" for shape in one.shapes}
    whole = {"f32[" + ",".join(map(str, shape)) + "]" for path, shape in sizes().items() if path.startswith("layers")}
    assert not gathered & whole
    assert {shape for shape in gathered if re.search(rf"\b{V}\b", shape)} <= {f"f32[{D},{V}]"}


def test_data_parallel_sends_each_gradient_once_and_nothing_else():
    found = sent("data")
    assert {one.kind for one in found} == {"all-reduce"}
    assert total(found, "all-reduce") == pytest.approx(2 * 7 / 8 * FLOAT * parameters(), abs=SMALL)


@pytest.mark.slow
def test_data_parallel_lora_sends_the_gradients_of_its_factors_and_nothing_else():
    found = sent("data", "lora")
    kernels = [s for path, s in sizes().items() if path.startswith("layers") and path.endswith("kernel")]
    factors = sum(4 * layers * (d + f) for layers, d, f in kernels)
    assert {one.kind for one in found} == {"all-reduce"}
    assert total(found, "all-reduce") == pytest.approx(2 * 7 / 8 * FLOAT * factors, abs=SMALL)


def test_fsdp_gathers_each_layer_forward_and_backward_and_the_table_never():
    found = sent("fsdp")
    assert_nothing_whole(found)
    kernels = parameters(lambda path: path.startswith("layers") and path.endswith("kernel"))
    head = parameters(lambda path: path.startswith("head"))
    assert total(found, "all-gather") == pytest.approx(7 / 8 * FLOAT * (2 * kernels + head), abs=SMALL)
    assert Counter(one.runs for one in large(found, "all-gather")) == {L: 2 * 7, 1: 1}
    # Embeddings: every device's columns for all tokens, exchanged for all columns of its tokens, and back.
    assert total(found, "all-to-all") == pytest.approx(2 * 7 / 8 * FLOAT * ROWS * LENGTH * D / 8)
    # This backend has no reduce-scatter: a gradient is summed everywhere, and then cut.
    summed = parameters(lambda path: not path.startswith("embed"))
    scattered = total(found, "reduce-scatter") * 2 + total(found, "all-reduce")
    assert scattered == pytest.approx(2 * 7 / 8 * FLOAT * summed, abs=2 * SMALL)


def test_weights_gradients_and_moments_of_a_full_step_are_shared_out():
    """ZeRO-3: eight devices hold an eighth of the state each, but for short vectors."""
    state = compiled("fsdp")[1]
    matrices = [x for x in jax.tree.leaves((state.delta, state.opt_state)) if x.size > L * F]
    assert len(matrices) == 3 * 9
    assert all(x.addressable_shards[0].data.size == x.size // 8 for x in matrices)


def test_tensor_parallel_adds_activations_twice_a_layer_each_way_and_gathers_nothing():
    found = sent("data x tensor")
    assert_nothing_whole(found)
    assert not large(found, "all-gather")
    activations = 2 * 1 / 2 * FLOAT * (ROWS // 4) * LENGTH * D
    along = [one for one in found if one.axes == ("tensor",) and one.bytes > SMALL]
    assert {one.kind for one in along} == {"all-reduce"}
    # Forward after attention and feed-forward, backward in front of them; the table's rows and the head's gradient.
    assert Counter((one.runs, one.bytes) for one in along) == {(L, activations): 4, (1, activations): 2}


@pytest.mark.slow
def test_microbatches_are_cut_without_communication():
    plain, cut = (sent("data x tensor", accumulate=n, rows=2 * ROWS) for n in (1, 2))
    assert {one.kind for one in cut} == {one.kind for one in plain} == {"all-reduce"}


def stray(placement: Placement) -> Placement:
    """A deliberate mistake: the feed-forward computes on every device, though it rests in parts."""
    return placement._replace(compute={**COMPUTE, "ffn": None, "vocab": None})


@pytest.mark.slow
def test_a_stray_gather_does_not_go_unnoticed():
    found = sent("data x tensor", change=stray)
    with pytest.raises(AssertionError):
        assert not large(found, "all-gather")
