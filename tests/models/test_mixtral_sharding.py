"""A mixture of experts on a mesh: the numbers of one device, with the communication that it must have."""

import functools
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from adaptlab import tree
from adaptlab.adapt import full, lora
from adaptlab.models import MixtralShape, language_modelling, mixtral
from adaptlab.plan.collectives import Collective, collectives
from adaptlab.plan.hlo import parse_hlo
from adaptlab.shard import Placement, make_mesh, on, place
from adaptlab.train import make_objective
from tests.laws.table import scattered
from tests.shard.meshes import LENGTH, VOCABULARY, batch

ROWS, D, L, E, K = 8, 32, 2, 8, 2
SHAPE = MixtralShape(VOCABULARY, D, L, heads=4, kv_heads=2, head_width=8, ffn_width=48, experts=E, active=K)
METHODS = {"full": full, "lora": lambda: lora(4)}


class Result(NamedTuple):
    """The mean loss and its gradient, on the host, and what the devices said to each other."""

    loss: Any
    gradient: dict[str, np.ndarray]
    said: list[Collective]


@functools.cache
def base() -> Any:
    shapes = jax.eval_shape(mixtral(SHAPE).init, jax.random.key(0))
    return scattered(jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes), 0, 0.2)


@functools.cache
def computed(method: str, factor: float | None, mesh: tuple[tuple[str, int], ...] | None) -> Result:
    """On a mesh of all eight devices, or (None) on one alone."""
    model, adaptation = mixtral(SHAPE, capacity_factor=factor, unroll=1), METHODS[method]()
    placement = Placement(make_mesh(**dict(mesh or ()), devices=None if mesh else jax.devices()[:1]), model.axes())
    objective = make_objective(language_modelling(model, balance=0.1, router_z=0.01), adaptation)
    delta = scattered(adaptation.init(jax.random.key(1), base()), 1, 0.05)

    def value_and_gradient(delta: Any, base: Any, batch: Any) -> Any:
        return jax.value_and_grad(lambda d: objective(d, base, batch, jax.random.key(0)).value)(delta)

    resting = placement.shardings(adaptation.axes(placement.axes), delta)
    arguments = (
        place(delta, resting),
        place(base(), placement.shardings(placement.axes, base())),
        jax.device_put(batch(0, ROWS), placement.batch),
    )
    compiled = jax.jit(on(placement, value_and_gradient), out_shardings=(None, resting)).lower(*arguments).compile()
    loss, gradient = jax.device_get(compiled(*arguments))
    said = collectives(parse_hlo(compiled.as_text()), placement.mesh.shape)
    return Result(loss, tree.flatten(gradient), said)


def cell(method: str, factor: float | None, *, slow: bool = True, **mesh: int) -> Any:
    name = " x ".join(mesh) + f"-{method}-" + ("dropless" if factor is None else f"{factor}")
    return pytest.param(method, factor, tuple(mesh.items()), id=name, marks=[pytest.mark.slow] if slow else [])


@pytest.mark.parametrize(
    ("method", "factor", "mesh"),
    [
        cell("full", 1.25, expert=8, slow=False),
        cell("lora", 1.25, expert=8),
        cell("full", None, expert=8),
        cell("full", 1.25, expert=2, data=2, tensor=2, slow=False),
        cell("lora", None, expert=4, data=2),
        cell("full", 1.25, expert=4, data=2),
        cell("lora", 1.25, expert=4, tensor=2),
        cell("full", None, expert=4, tensor=2),
        cell("full", 1.25, expert=2, fsdp=4),
        cell("lora", 1.25, expert=2, fsdp=2, data=2),
        cell("lora", 1.25, expert=4, context=2),
        cell("full", None, expert=4, context=2),
        cell("full", 1.25, data=8),
    ],
)
def test_experts_on_a_mesh_give_the_loss_and_gradient_of_one_device(method: str, factor: float | None, mesh: Any):
    wanted, got = computed(method, factor, None), computed(method, factor, mesh)
    np.testing.assert_allclose(got.loss, wanted.loss, rtol=1e-5)
    assert got.gradient.keys() == wanted.gradient.keys()
    for path, g in wanted.gradient.items():
        np.testing.assert_allclose(got.gradient[path], g, rtol=0, atol=1e-5 * np.abs(g).max(), err_msg=path)


def test_tokens_go_to_their_experts_and_back_and_nothing_else_of_a_batch_is_sent():
    said = computed("full", 1.25, (("expert", 8),)).said
    there_and_back = [one for one in said if one.kind == "all-to-all"]
    # Each layer twice forwards and twice backwards, and each time a device's share of the slots once.
    assert sum(one.runs for one in there_and_back) == L * 4
    slots = E * -(-K * LENGTH * 5 // (4 * E))
    assert {one.bytes for one in there_and_back} == {ROWS // 8 * slots * D * 4 * 7 / 8}
    assert {one.kind for one in said} == {"all-to-all", "all-reduce"}
    experts = tree.count(base()["layers"]["feed_forward"]) - L * D * E
    reduced = sum(one.runs * one.bytes for one in said if one.kind == "all-reduce") / (2 * 7 / 8) / 4
    # Gradients of what all devices have, and a few numbers; those of experts stay where they are.
    assert tree.count(base()) - experts <= reduced < tree.count(base()) - experts + 200
