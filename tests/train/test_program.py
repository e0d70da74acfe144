import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import tree
from adaptlab.adapt import lora
from adaptlab.optim import adamw
from adaptlab.shard import Placement, make_mesh, place
from adaptlab.train import Program, compile_program, device_numbers, make_program
from tests.laws.table import MODELS, scattered
from tests.train import toy

ROW = MODELS["llama_untied_gqa"]
NUMBERS, SEED = device_numbers({"lr": 0.01}, 0)


def program(placement: Placement | None = None) -> Program:
    return make_program(
        lambda _: ROW.loss, lambda _: lora(2), lambda n: adamw(n["lr"], total_steps=4, clip=1.0), placement=placement
    )


def test_a_step_on_a_mesh_is_the_step_on_one_device_and_states_rest_where_their_axes_say():
    base = scattered(jax.jit(ROW.model.init)(jax.random.key(0)), 0)
    placement = Placement(make_mesh(data=4, tensor=2), ROW.model.axes())
    on_mesh = place(base, placement.shardings(placement.axes, base))
    alone, spread = program(), program(placement)
    states = alone.init(NUMBERS, SEED, base), spread.init(NUMBERS, SEED, on_mesh)
    b = tree.flatten(states[1])["opt_state/1/mu/layers/feed_forward/up/kernel/b"]
    assert b.sharding.spec == jax.sharding.PartitionSpec(None, None, "tensor")
    for i in range(2):
        batch = ROW.batch(i)
        one = alone.step(NUMBERS, SEED, states[0], base, batch)
        eight = spread.step(NUMBERS, SEED, states[1], on_mesh, jax.device_put(batch, placement.batch))
        states = one[0], eight[0]
        np.testing.assert_allclose(eight[1]["loss"], one[1]["loss"], rtol=1e-5)
        np.testing.assert_allclose(eight[1]["grad_norm"], one[1]["grad_norm"], rtol=1e-4)


def test_a_compiled_program_takes_one_shape_and_knows_its_cost():
    numbers, seed = device_numbers({"lr": 0.1}, 0)
    plain = toy.program()
    compiled = compile_program(plain, numbers, seed, toy.BASE, toy.points(0))
    state = compiled.program.init(numbers, seed, toy.BASE, None)
    wanted = plain.step(numbers, seed, plain.init(numbers, seed, toy.BASE), toy.BASE, toy.points(0))
    got = compiled.program.step(numbers, seed, state, toy.BASE, toy.points(0))
    assert tree.digest(got[0]) == tree.digest(wanted[0])
    assert compiled.flops == 2 * 2 * 8 * 3 + 2 * 3  # forward, weight gradient, and the gradient's norm
    assert compiled.memory_bytes > tree.nbytes(state)
    with pytest.raises(TypeError):
        compiled.program.step(numbers, seed, got[0], toy.BASE, toy.points(0, rows=4))


def test_the_state_is_donated_and_the_base_is_not():
    numbers, seed = device_numbers({"lr": 0.1}, 0)
    base = jax.tree.map(jnp.copy, toy.BASE)
    plain = toy.program()
    state = plain.init(numbers, seed, base)
    plain.step(numbers, seed, state, base, toy.points(0))
    assert state.delta["w"].is_deleted()
    assert not base["w"].is_deleted()


def test_seeds_draw_other_adapters_and_one_seed_the_same():
    base = jax.jit(ROW.model.init)(jax.random.key(0))
    one = program()
    digests = [tree.digest(one.init(*device_numbers({"lr": 0.1}, seed), base).delta) for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]
