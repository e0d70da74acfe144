"""What holds for every optimiser."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from adaptlab import optim, tree
from adaptlab.config.check import TRACED, marked, parameters_of
from adaptlab.optim import sgd
from adaptlab.optim.groups import Groups
from tests.optim.table import COMMON, SCHEDULED, TABLE, TREE, assert_trees_close, gradient_at, trained


@pytest.mark.parametrize("name", TABLE)
def test_every_number_may_be_traced_and_mapped_over(name: str):
    make, numbers, options = TABLE[name]

    def run(numbers: dict[str, Any]) -> Any:
        given = {k: v for k, v in numbers.items() if k != "final"}
        schedule = optim.cosine(warmup=0.5, final=numbers["final"])
        return trained(make(total_steps=4, schedule=schedule, **given, **options))

    rows = [{k: v * f for k, v in (COMMON | numbers | {"final": 0.5}).items()} for f in (1.0, 0.8)]
    together = jax.jit(jax.vmap(run))(jax.tree.map(lambda *x: jnp.asarray(x), *rows))
    for i, row in enumerate(rows):
        assert_trees_close(jax.tree.map(lambda x, i=i: x[i], together), jax.jit(lambda row=row: run(row))())


@pytest.mark.parametrize("name", TABLE)
def test_the_table_has_every_number_a_signature_marks(name: str):
    make, numbers, _ = TABLE[name]
    assert {k for k, p in parameters_of(make).items() if marked(p, TRACED)} == {*COMMON, *numbers}


@pytest.mark.parametrize("name", TABLE)
def test_moments_are_found_with_their_parameters(name: str):
    make, numbers, options = TABLE[name]
    optimizer = make(total_steps=4, **COMMON, **numbers, **options)
    params, state = trained(optimizer)
    found = []

    def check(moment: Any, shape: tuple[int, ...]) -> Any:
        if not isinstance(moment, optax.MaskedNode):
            assert moment.shape == shape
            found.append(shape)
        return moment

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), params)
    mapped = optax.tree_map_params(
        optimizer,
        lambda moment, like: check(moment, like.shape),
        state,
        shapes,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    assert jax.tree.structure(mapped) == jax.tree.structure(state)
    wanted = {"adamw": 8, "muon": 6, "schedule_free_adamw": 8}.get(name, 4)  # muon has one moment for matrices
    assert len(found) == wanted


@pytest.mark.parametrize("name", TABLE)
def test_the_second_update_has_the_state_of_the_first(name: str):
    make, numbers, options = TABLE[name]
    optimizer = make(total_steps=4, **COMMON, **numbers, **options)
    state = optimizer.init(TREE)
    _, after = optimizer.update(gradient_at(0), state, TREE)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)


@pytest.mark.parametrize("name", TABLE)
def test_an_empty_delta_has_nothing_to_update(name: str):
    make, numbers, options = TABLE[name]
    optimizer = make(total_steps=4, **COMMON, **numbers, **options)
    assert optimizer.update({}, optimizer.init({}), {})[0] == {}


@pytest.mark.parametrize("name", [name for name in TABLE if not name.startswith("schedule_free")])
def test_other_optimisers_evaluate_what_they_train(name: str):
    make, numbers, options = TABLE[name]
    params, state = trained(make(total_steps=4, **COMMON, **numbers, **options))
    assert optim.eval_params(state, params) is params


@pytest.mark.parametrize("name", SCHEDULED)
def test_a_constant_momentum_schedule_is_that_momentum(name: str):
    make, numbers, options = TABLE[name]
    key = "b1" if "momentum" not in numbers else "momentum"

    def fixed(step: jax.Array, total: int) -> jax.Array:
        return jnp.full((), numbers[key])

    others = {k: v for k, v in numbers.items() if k != key}
    scheduled = make(total_steps=4, **COMMON, **others, **options, momentum_schedule=fixed)
    plain = make(total_steps=4, **COMMON, **numbers, **options)
    assert_trees_close(trained(scheduled)[0], trained(plain)[0])


def groups_of(rate: float, decay: float, start: float, stacked: bool = False) -> Groups:
    """The layers' own rate and start (by layer, or alike), the rest plain."""

    def each(layers: float, others: float) -> Any:
        def resolve(delta: Any, total_steps: int | None = None) -> Any:
            def value(x: Any) -> np.ndarray:
                shape = (2, *(1,) * (x.ndim - 1)) if stacked else ()
                return np.full(shape, layers, np.float32)

            rest = jax.tree.map(lambda _: np.float32(others), {k: v for k, v in delta.items() if k != "layers"})
            return {"layers": jax.tree.map(value, delta["layers"]), **rest}

        return resolve

    return Groups(each(rate, 1.0), each(decay, 1.0), each(start, 0.0))


@pytest.mark.parametrize("name", TABLE)
def test_plain_groups_change_nothing(name: str):
    make, numbers, options = TABLE[name]
    plain = make(total_steps=4, **COMMON, **numbers, **options)
    grouped = make(total_steps=4, **COMMON, **numbers, **options, groups=groups_of(1.0, 1.0, 0.0))
    assert_trees_close(trained(grouped)[0], trained(plain)[0])


@pytest.mark.parametrize("name", [name for name in TABLE if not name.startswith("schedule_free")])
def test_a_group_multiplies_the_whole_first_update_of_its_leaves_by_its_rate(name: str):
    make, numbers, options = TABLE[name]
    plain = make(total_steps=4, **COMMON, **numbers, **options)
    grouped = make(total_steps=4, **COMMON, **numbers, **options, groups=groups_of(0.5, 1.0, 0.0))
    change, _ = plain.update(gradient_at(0), plain.init(TREE), TREE)
    scaled, _ = grouped.update(gradient_at(0), grouped.init(TREE), TREE)
    assert_trees_close(scaled["layers"], jax.tree.map(lambda x: x / 2, change["layers"]))
    assert_trees_close(scaled["embed"], change["embed"])


@pytest.mark.parametrize("stacked", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adamw", "lion", "muon"])
def test_a_late_group_trains_as_one_that_begins_then(name: str, stacked: bool):
    make, numbers, options = TABLE[name]
    settings = COMMON | numbers | options | {"clip": None}
    late = make(total_steps=6, **settings, groups=groups_of(1.0, 1.0, 2.0, stacked))
    jax.tree.map(np.testing.assert_array_equal, trained(late, steps=range(2))[0]["layers"], TREE["layers"])
    layers = {"layers": TREE["layers"]}
    wanted, _ = trained(make(total_steps=6, **settings), layers, steps=range(2, 5))
    assert_trees_close(trained(late, steps=range(5))[0]["layers"], wanted["layers"], rtol=1e-5, atol=1e-5)


def test_what_is_frozen_does_not_count_in_the_clipped_norm():
    frozen = groups_of(1.0, 1.0, np.inf)
    optimizer = sgd(1.0, total_steps=2, clip=0.5, groups=frozen)
    change = tree.flatten(optimizer.update(gradient_at(0), optimizer.init(TREE), TREE)[0])
    np.testing.assert_allclose(np.linalg.norm(change.pop("embed/embedding")), 0.5, rtol=1e-6)
    assert all(np.all(np.asarray(x) == 0) for x in change.values())


@pytest.mark.parametrize("name", TABLE)
def test_a_state_rests_on_a_mesh_beside_its_parameters(name: str):
    make, numbers, options = TABLE[name]
    optimizer = make(total_steps=4, **COMMON, **numbers, **options)
    mesh = jax.make_mesh((2, 4), ("x", "y"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    everywhere = NamedSharding(mesh, PartitionSpec())
    there = jax.tree.map(lambda _: everywhere, TREE)
    there["layers"]["out"]["kernel"] = NamedSharding(mesh, PartitionSpec("x", "y"))

    @jax.jit
    def init() -> Any:
        state = optimizer.init(TREE)
        where = optax.tree_map_params(
            optimizer,
            lambda _, there: there,
            state,
            there,
            transform_non_params=lambda _: everywhere,
            is_leaf=lambda x: isinstance(x, optax.MaskedNode),
        )
        return jax.lax.with_sharding_constraint(state, where)

    split = [x for x in jax.tree.leaves(init()) if x.addressable_shards[0].data.shape != x.shape]
    moments = {"adamw": 2, "schedule_free_adamw": 2}.get(name, 1)  # adafactor's is its average of updates
    assert [x.shape for x in split] == [(2, 4, 3)] * moments


@pytest.mark.parametrize("name", TABLE)
def test_only_schedule_free_averages(name: str):
    make, numbers, options = TABLE[name]
    state = make(total_steps=4, **COMMON, **numbers, **options).init(TREE)
    assert optim.averages(state) == name.startswith("schedule_free")
