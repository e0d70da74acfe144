"""The laws that every adaptation keeps on every model (`tests.laws.table`)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf, tree
from adaptlab.adapt import count_trained, load_delta, materialize, prepared, save_delta
from adaptlab.optim import adamw
from adaptlab.shard import Placement, make_mesh, place
from adaptlab.train import Program, TrainState, device_numbers, make_objective, make_program, open_checkpoints
from tests.laws.table import Case, cases, scattered

CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="module", params=cases())
def case(request: pytest.FixtureRequest) -> Case:
    case = request.param
    return case._replace(base=prepared(case.adaptation(), case.plain))


@pytest.fixture(scope="module")
def delta(case: Case) -> Any:
    """A random delta: at init, half of what can go wrong multiplies a zero."""
    return scattered(case.adaptation().init(jax.random.key(1), case.base), 1, scale=0.1)


@pytest.fixture(scope="module")
def program(case: Case) -> Program:
    return make_program(
        lambda numbers: case.row.loss,
        lambda numbers: case.adaptation(numbers["alpha"]),
        lambda numbers: adamw(numbers["lr"], total_steps=10, weight_decay=0.01),
    )


def objective(case: Case) -> Callable[[Any, Any, Any], jax.Array]:
    """The mean loss as `(delta, base, batch) -> scalar`."""
    summed = make_objective(case.row.loss, case.adaptation())
    return lambda delta, base, batch: summed(delta, base, batch, jax.random.key(0)).value


def dense(params: Any) -> Any:
    """The shapes and types of the plain model that weights, quantised or not, stand for."""
    return jax.eval_shape(materialize, params)


def start(case: Case, program: Program, alpha: float = 3.0, lr: float = 0.01, seed: int = 0) -> tuple[Any, ...]:
    numbers, seed_array = device_numbers({"alpha": alpha, "lr": lr}, seed)
    return numbers, seed_array, program.init(numbers, seed_array, case.base)


def assert_trees_close(got: Any, wanted: Any) -> None:
    """Equal within 1e-5, relative to the largest element of a leaf: rounding is as large as what cancels."""
    got, wanted = tree.flatten(got), tree.flatten(wanted)
    assert got.keys() == wanted.keys()
    for path, array in wanted.items():
        atol = 1e-5 * max(1.0, np.abs(array).max())
        np.testing.assert_allclose(got[path], array, rtol=0, atol=atol, err_msg=path)


@pytest.fixture(scope="module")
def value_and_gradient(case: Case) -> Any:
    return jax.jit(jax.value_and_grad(objective(case)))


def test_an_adapted_model_starts_as_the_base(case: Case):
    if case.adaptation_row.not_the_base:
        pytest.skip(case.adaptation_row.not_the_base)

    @jax.jit
    def both(base: Any, plain: Any, batch: Any) -> Any:
        delta = case.adaptation().init(jax.random.key(1), base)
        return case.row.outputs(case.adaptation().bind(base, delta), batch), case.row.outputs(plain, batch)

    adapted, plain = both(case.base, case.plain, case.row.batch(0))
    np.testing.assert_allclose(adapted, plain, rtol=0, atol=1e-6)


def test_the_bound_model_is_the_merged_model(case: Case, delta: Any):
    if case.adaptation_row.not_an_array:
        pytest.skip(case.adaptation_row.not_an_array)

    @jax.jit
    def three(base: Any, plain: Any, delta: Any, batch: Any) -> Any:
        bound = case.adaptation().bind(base, delta)
        return [case.row.outputs(params, batch) for params in (bound, materialize(bound), plain)]

    bound, merged, plain = three(case.base, case.plain, delta, case.row.batch(0))
    np.testing.assert_allclose(bound, merged, **CLOSE)
    assert (np.abs(bound - plain).max() > 0.01) == (tree.count(delta) > 0)


def test_a_merged_model_has_the_shapes_of_its_base(case: Case, delta: Any):
    if case.adaptation_row.not_an_array:
        pytest.skip(case.adaptation_row.not_an_array)
    merged = jax.eval_shape(lambda base, d: materialize(case.adaptation().bind(base, d)), case.base, delta)
    described = [{p: (x.shape, x.dtype) for p, x in tree.flatten(t).items()} for t in (merged, dense(case.plain))]
    assert described[0] == described[1]


def test_every_part_of_the_delta_gets_a_gradient(case: Case, delta: Any, value_and_gradient: Any):
    _, gradient = value_and_gradient(delta, case.base, case.row.batch(0))
    for path, g in tree.flatten(gradient).items():
        parts = g if path.startswith("layers/") else g[None]
        assert all(np.any(part != 0) for part in parts), path


def test_a_prepared_base_is_the_same_for_all_numbers(case: Case):
    bases = [prepared(case.adaptation(alpha), case.plain) for alpha in (1.0, 30.0)]
    assert tree.digest(bases[0]) == tree.digest(bases[1]) == tree.digest(case.base)


def test_a_prepared_base_stands_for_the_base(case: Case):
    assert tree.digest(materialize(case.base)) == tree.digest(materialize(case.plain))


def test_training_leaves_the_base_as_it_was(case: Case, program: Program):
    before = tree.digest(case.base)
    numbers, seed, state = start(case, program)
    initial = tree.digest(state.delta)
    for step in range(3):
        state, _ = program.step(numbers, seed, state, case.base, case.row.batch(step))
    assert tree.digest(case.base) == before
    assert (tree.digest(state.delta) != initial) == (tree.count(state.delta) > 0)


def test_many_deltas_at_once_are_each_alone(case: Case, delta: Any, value_and_gradient: Any):
    # At .1 a chain comes to where the gradient magnifies rounding fifty times, on some CPUs to more than 1e-5.
    deltas = [scattered(delta, seed, scale=0.05) for seed in range(3)]
    batches = [case.row.batch(seed) for seed in range(3)]
    stack = lambda *x: jnp.stack(x)  # noqa: E731
    stacked = jax.tree.map(stack, *deltas), case.base, jax.tree.map(stack, *batches)
    together = jax.jit(jax.vmap(value_and_gradient, in_axes=(0, None, 0)))(*stacked)
    alone = jax.tree.map(stack, *[value_and_gradient(d, case.base, b) for d, b in zip(deltas, batches, strict=True)])
    assert_trees_close(together, alone)


def test_eight_devices_give_what_one_gives(case: Case, delta: Any, value_and_gradient: Any):
    wanted = value_and_gradient(delta, case.base, case.row.batch(0))
    placement = Placement(make_mesh(data=4, tensor=2), case.row.model.axes())
    axes = leaf.array_axes(placement.axes, case.plain)
    spread = (
        place(delta, placement.shardings(case.adaptation().axes(placement.axes), delta)),
        prepared(case.adaptation(), place(case.plain, placement.shardings(axes, case.plain))),
        jax.device_put(case.row.batch(0), placement.batch),
    )
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(spread))
    assert_trees_close(value_and_gradient(*spread), wanted)


def test_other_numbers_seeds_and_batches_do_not_recompile(case: Case, program: Program):
    for i in range(2):
        numbers, seed, state = start(case, program, alpha=1.0 + i, lr=0.01 * (1 + i), seed=i)
        for step in range(2):
            state, _ = program.step(numbers, seed, state, case.base, case.row.batch(step + i))
    assert program.init._cache_size() == 1
    assert program.step._cache_size() == 1


def test_a_step_keeps_the_states_shapes_and_types(case: Case, program: Program):
    numbers, seed, state = start(case, program)
    after, metrics = jax.eval_shape(program.step, numbers, seed, state, case.base, case.row.batch(0))
    assert jax.tree.structure(after) == jax.tree.structure(state)
    described = [[(x.shape, x.dtype, x.weak_type) for x in jax.tree.leaves(s)] for s in (state, after)]
    assert described[0] == described[1]
    assert {m.dtype for m in metrics.values()} == {jnp.dtype("float32")}
    assert {m.shape for m in metrics.values()} == {()}


def test_the_hessian_of_the_objective_is_symmetric(case: Case, delta: Any):
    if case.adaptation_row.not_a_gradient:
        pytest.skip(case.adaptation_row.not_a_gradient)
    u, v = (scattered(jax.tree.map(jnp.zeros_like, delta), seed) for seed in (2, 3))
    gradient, batch = jax.grad(objective(case)), case.row.batch(0)

    @jax.jit
    def product(direction: Any) -> Any:
        return jax.jvp(lambda d: gradient(d, case.base, batch), (delta,), (direction,))[1]

    hu, hv = product(u), product(v)
    scale = float(tree.norm(u) * tree.norm(hv))
    assert abs(float(tree.dot(u, hv) - tree.dot(v, hu))) <= 1e-5 * scale
    assert (scale > 1e-3) == (tree.count(delta) > 0)


def test_as_many_parameters_train_as_the_formula_says(case: Case, delta: Any):
    shapes = {path: x.shape for path, x in tree.flatten(dense(case.plain)).items()}
    assert count_trained(case.adaptation(), case.base, delta) == case.adaptation_row.count(shapes)


def test_a_restored_state_is_the_saved_one_and_goes_on_as_it_would(case: Case, program: Program, tmp_path: Path):
    numbers, seed, state = start(case, program)
    state, _ = program.step(numbers, seed, state, case.base, case.row.batch(0))
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(state)
    checkpoints.close()
    checkpoints = open_checkpoints(tmp_path)
    restored = checkpoints.restore(start(case, program)[-1])
    checkpoints.close()
    assert isinstance(restored, TrainState)
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    assert tree.digest(restored) == tree.digest(state)
    next_states = [program.step(numbers, seed, s, case.base, case.row.batch(1)) for s in (state, restored)]
    assert tree.digest(next_states[0]) == tree.digest(next_states[1])


def test_a_saved_delta_is_loaded_bit_by_bit(case: Case, delta: Any, tmp_path: Path):
    config = {"_target_": "some.factory", "rank": 2}
    digest = save_delta(tmp_path / "delta.safetensors", delta, adapt=config, base="0" * 64)
    saved = load_delta(tmp_path / "delta.safetensors", base="0" * 64)
    assert saved.digest == digest == tree.digest(saved.delta) == tree.digest(delta)
    assert (saved.adapt, saved.base) == (config, "0" * 64)


def test_every_array_of_the_delta_has_its_axes(case: Case, delta: Any):
    axes = tree.flatten(case.adaptation().axes(case.row.model.axes()), is_leaf=lambda x: isinstance(x, tuple))
    assert {path: len(names) for path, names in axes.items()} == {p: x.ndim for p, x in tree.flatten(delta).items()}


def test_alpha_and_the_learning_rate_are_heard(case: Case, program: Program, delta: Any):
    def loss_after(**numbers: float) -> float:
        given, seed, state = start(case, program, **numbers)
        for step in range(2):
            state, metrics = program.step(given, seed, state, case.base, case.row.batch(step))
        return float(metrics["loss"])

    plain = loss_after()
    assert (loss_after(lr=0.1) != plain) == (tree.count(delta) > 0)
    hears = case.adaptation_row.hears_alpha
    if hears is None:
        hears = "a" in {path.rpartition("/")[2] for path in tree.flatten(delta)}
    assert (loss_after(alpha=30.0) != plain) == hears
