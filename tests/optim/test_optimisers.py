from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from adaptlab import optim, tree
from adaptlab.optim import adamw, linear, sgd
from adaptlab.optim.groups import Groups

PARAMS = {"w": jnp.asarray([1.0, -2.0]), "b": jnp.asarray([0.5])}
GRADIENTS = [
    {"w": jnp.asarray([0.3, -0.4]), "b": jnp.asarray([1.2])},
    {"w": jnp.asarray([5.0, 0.1]), "b": jnp.zeros(1)},
]


def run(optimizer: optax.GradientTransformation, params: Any = PARAMS) -> list[Any]:
    """The parameters after each gradient. Optax alone needs the standard promotion of types."""
    state, seen = optimizer.init(params), []
    for gradient in GRADIENTS * 3:
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optimizer.update(gradient, state, params)
        params = optax.apply_updates(params, updates)
        seen.append(params)
    return seen


def assert_same(got: list[Any], wanted: list[Any]) -> None:
    for g, w in zip(got, wanted, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6, atol=1e-7), g, w)


def test_adamw_is_optax_adamw():
    ours = adamw(0.01, total_steps=6, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1)
    assert_same(run(ours), run(optax.adamw(0.01, b1=0.8, b2=0.95, eps=1e-6, weight_decay=0.1)))


def test_adamw_by_hand_for_two_updates():
    lr, b1, b2, eps, decay = 0.01, 0.9, 0.99, 1e-8, 0.1
    w, m, v, wanted = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2), []
    for t, gradient in enumerate(GRADIENTS, 1):
        g = np.asarray(gradient["w"], np.float64)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        step = (m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps)
        w = w - lr * (step + decay * w)
        wanted.append(w)
    got = run(adamw(lr, total_steps=6, b1=b1, b2=b2, eps=eps, weight_decay=decay))
    for g, w in zip(got, wanted, strict=False):
        np.testing.assert_allclose(g["w"], w, rtol=1e-5)


def test_sgd_is_optax_sgd_with_heavy_ball_momentum():
    assert_same(run(sgd(0.1, total_steps=6, momentum=0.9)), run(optax.sgd(0.1, momentum=0.9)))
    assert_same(run(sgd(0.1, total_steps=6)), run(optax.sgd(0.1)))


def test_clipping_bounds_the_norm_over_all_parameters_and_keeps_the_direction():
    optimizer = sgd(1.0, total_steps=2, clip=0.65)  # the first gradient has norm 1.3
    updates, _ = optimizer.update(GRADIENTS[0], optimizer.init(PARAMS), PARAMS)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -g / 2, rtol=1e-6), updates, GRADIENTS[0])
    loose = sgd(1.0, total_steps=2, clip=1.31)
    updates, _ = loose.update(GRADIENTS[0], loose.init(PARAMS), PARAMS)
    jax.tree.map(lambda u, g: np.testing.assert_allclose(u, -g, rtol=1e-6), updates, GRADIENTS[0])


def test_the_schedule_multiplies_the_learning_rate_and_the_decay_too():
    schedule = linear(warmup=0.0, final=0.0)
    ours = run(adamw(0.1, total_steps=6, schedule=schedule, weight_decay=0.5))
    factors = [1 - (i + 1) / 6 for i in range(6)]
    wanted = run(optax.adamw(lambda step: 0.1 * jnp.asarray(factors)[step], weight_decay=0.5))
    assert_same(ours, wanted)
    jax.tree.map(np.testing.assert_array_equal, ours[-1], ours[-2])  # the last factor is zero


def test_moments_are_float32_whatever_the_count():
    state = adamw(0.1, total_steps=3).init(PARAMS)
    kinds = {x.dtype for x in jax.tree.leaves(state)}
    assert kinds == {jnp.dtype("float32"), jnp.dtype("int32")}


# A tree as deltas are: a stack of matrices, a low-rank factor, a matrix for Adam, and stacked vectors.
TREE = {
    "layers": {
        "out": {"kernel": jax.random.normal(jax.random.key(1), (2, 4, 3))},
        "up": {"kernel": {"a": jax.random.normal(jax.random.key(2), (2, 4, 2))}},
        "norm": {"scale": jax.random.normal(jax.random.key(3), (2, 4))},
    },
    "embed": {"embedding": jax.random.normal(jax.random.key(4), (5, 4))},
}

# Optimiser -> its traced numbers, and its other arguments.
TABLE: dict[str, tuple[Any, dict[str, float], dict[str, Any]]] = {
    "sgd": (sgd, {"momentum": 0.9}, {}),
    "nesterov": (sgd, {"momentum": 0.9}, {"nesterov": True}),
    "adamw": (adamw, {"b1": 0.8, "b2": 0.95, "eps": 1e-3}, {}),
    "lion": (optim.lion, {"b1": 0.8, "b2": 0.9}, {}),
    "adafactor": (
        optim.adafactor,
        {"decay_rate": 0.7, "threshold": 0.8, "momentum": 0.5, "eps": 1e-6, "min_scale": 1e-2},
        {"min_size_to_factor": 3},
    ),
    "muon": (optim.muon, {"momentum": 0.9, "rms": 0.3, "adam_lr": 0.5, "b1": 0.8, "b2": 0.95, "eps": 1e-3}, {}),
    "schedule_free_adamw": (optim.schedule_free_adamw, {"b1": 0.8, "b2": 0.95, "eps": 1e-3, "power": 1.5}, {}),
    "schedule_free_sgd": (optim.schedule_free_sgd, {"b1": 0.8, "power": 1.5}, {}),
}
COMMON = {"lr": 0.1, "weight_decay": 0.2, "clip": 3.0}
SCHEDULED = ["sgd", "nesterov", "adamw", "lion", "muon"]


def gradient(step: int, params: Any = TREE) -> Any:
    """Another gradient at each step and path, the same for everybody."""

    def draw(path: str, x: jax.Array) -> jax.Array:
        return jnp.asarray(np.random.default_rng([step, *path.encode()]).normal(size=x.shape), jnp.float32)

    return tree.map_with_path(draw, params)


def trained(optimizer: optax.GradientTransformation, params: Any = TREE, steps: Any = range(3)) -> tuple[Any, Any]:
    """The parameters and the state after the updates of some steps."""

    @jax.jit
    def update(gradient: Any, state: Any, params: Any) -> tuple[Any, Any]:
        with jax.numpy_dtype_promotion("standard"):  # for Optax alone
            change, state = optimizer.update(gradient, state, params)
        return optax.apply_updates(params, change), state

    state = optimizer.init(params)
    for step in steps:
        params, state = update(gradient(step, params), state, params)
    return params, state


def assert_trees_close(got: Any, wanted: Any, rtol: float = 1e-6, atol: float = 1e-6) -> None:
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), got, wanted)


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
    from adaptlab.config.check import TRACED, marked, parameters_of

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
    _, after = optimizer.update(gradient(0), state, TREE)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), after) == jax.tree.map(lambda x: (x.shape, x.dtype), state)


@pytest.mark.parametrize("name", TABLE)
def test_an_empty_delta_has_nothing_to_update(name: str):
    make, numbers, options = TABLE[name]
    optimizer = make(total_steps=4, **COMMON, **numbers, **options)
    assert optimizer.update({}, optimizer.init({}), {})[0] == {}


def test_lion_is_optax_lion():
    ours = optim.lion(0.01, total_steps=4, b1=0.8, b2=0.95, weight_decay=0.1)
    assert_trees_close(trained(ours)[0], trained(optax.lion(0.01, b1=0.8, b2=0.95, weight_decay=0.1))[0])


def test_nesterov_is_optax_nesterov():
    ours = sgd(0.1, total_steps=4, momentum=0.9, nesterov=True)
    assert_trees_close(trained(ours)[0], trained(optax.sgd(0.1, momentum=0.9, nesterov=True))[0])


@pytest.mark.parametrize("least", [2, 128])
def test_adafactor_is_optax_adafactor_where_arrays_are_matrices(least: int):
    params = {"w": TREE["embed"]["embedding"], "b": jnp.asarray([0.3, -2.0])}
    ours = optim.adafactor(0.1, total_steps=4, min_size_to_factor=least)
    theirs = optax.adafactor(0.1, min_dim_size_to_factor=least)
    assert_trees_close(trained(ours, params)[0], trained(theirs, params)[0])


def test_adafactor_treats_the_matrices_of_a_stack_one_by_one():
    # The smallest axis is the stack's, so that matrices are factored over the same axes alone as in it.
    stack = {"w": jax.random.normal(jax.random.key(5), (2, 4, 6)) * jnp.asarray([1.0, 9.0]).reshape(2, 1, 1)}
    optimizer = optim.adafactor(0.1, total_steps=4, min_size_to_factor=3)
    state, each = optimizer.init(stack), [{"w": stack["w"][i]} for i in range(2)]
    states = [optimizer.init(one) for one in each]
    for step in range(3):
        g = gradient(step, stack)
        u, state = optimizer.update(g, state, stack)
        for i in range(2):
            alone, states[i] = optimizer.update({"w": g["w"][i]}, states[i], each[i])
            np.testing.assert_allclose(u["w"][i], alone["w"], rtol=1e-5)


def test_muon_is_optax_muon_on_each_matrix_and_adam_on_the_rest():
    ours, _ = trained(optim.muon(0.02, total_steps=4, rms=0.2, weight_decay=0.1))
    last = optax.contrib.MuonDimensionNumbers(-2, -1)

    def dimensions(params: Any) -> Any:
        none = jax.tree.map(lambda _: None, params)
        return none | {"layers": none["layers"] | {"out": {"kernel": last}, "up": {"kernel": {"a": last}}}}

    theirs, _ = trained(
        optax.contrib.muon(0.02, consistent_rms=0.2, weight_decay=0.1, muon_weight_dimension_numbers=dimensions)
    )
    # The rest is not compared with it: its Adam looks ahead where its Muon does.
    adam, _ = trained(optax.adamw(0.02, weight_decay=0.1))
    for name in ("out", "up"):
        assert_trees_close(ours["layers"][name], theirs["layers"][name])
    assert_trees_close(ours["layers"]["norm"], adam["layers"]["norm"])
    assert_trees_close(ours["embed"], adam["embed"])


def test_muon_steps_along_an_orthogonal_matrix():
    params = {"dense": {"kernel": jnp.zeros((6, 3))}}
    optimizer = optim.muon(1.0, total_steps=1, rms=None, iterations=12)
    u, _ = optimizer.update(gradient(0, params), optimizer.init(params), params)
    values = np.linalg.svd(np.asarray(u["dense"]["kernel"]), compute_uv=False)
    assert np.all((values > 0.6) & (values < 1.3))
    assert np.linalg.svd(np.asarray(gradient(0, params)["dense"]["kernel"]), compute_uv=False).max() > 1.5


@pytest.mark.parametrize(("select", "message"), [("kernels", "matches nothing"), (".*/scale", "layers/norm/scale")])
def test_muon_refuses_what_is_no_matrix(select: str, message: str):
    params = TREE | {"layers": TREE["layers"] | {"norm": {"scale": jnp.ones(4)}}}
    with pytest.raises(ValueError, match=message):
        optim.muon(0.1, total_steps=1, select=select).init(params)


@pytest.mark.parametrize("name", ["schedule_free_adamw", "schedule_free_sgd"])
def test_schedule_free_is_optax_schedule_free(name: str):
    schedule = linear(warmup=0.5, final=0.7)
    rates = [0.1 * float(schedule(jnp.int32(i), 4)) for i in range(4)]

    def rate(count: Any) -> Any:
        return jnp.asarray(rates)[count]

    if name == "schedule_free_adamw":
        ours = optim.schedule_free_adamw(0.1, total_steps=4, schedule=schedule, b1=0.8, b2=0.95, weight_decay=0.1)
        base = optax.chain(
            optax.scale_by_adam(b1=0.0, b2=0.95),
            optax.add_decayed_weights(0.1),
            optax.scale_by_learning_rate(rate),
        )
    else:
        ours = optim.schedule_free_sgd(0.1, total_steps=4, schedule=schedule, b1=0.8, weight_decay=0.1)
        base = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(rate))
    theirs = optax.contrib.schedule_free(base, lambda count: rate(count - 1), b1=0.8)
    (got, state), (wanted, reference) = trained(ours), trained(theirs)
    assert_trees_close(got, wanted)
    evaluated = optim.eval_params(state, got)
    assert_trees_close(evaluated, optax.contrib.schedule_free_eval_params(reference, wanted))
    assert not np.allclose(jax.tree.leaves(evaluated)[0], jax.tree.leaves(got)[0])


def test_schedule_free_sgd_evaluates_the_average_of_its_iterates():
    b1, lr, power = 0.8, 0.1, 2.0
    z = x = y = np.asarray([1.0, -2.0])
    total = 0.0
    rates = [0.5 * lr, lr, lr, lr]
    params = {"w": jnp.asarray(y, jnp.float32)}
    optimizer = optim.schedule_free_sgd(lr, total_steps=4, schedule=optim.constant(warmup=0.5), b1=b1, power=power)
    state = optimizer.init(params)
    for rate in rates:
        updates, state = optimizer.update(params, state, params)  # the gradient of |w|² / 2
        params = optax.apply_updates(params, updates)
        z = z - rate * y
        total += rate**power
        x = x + rate**power / total * (z - x)
        y = (1 - b1) * z + b1 * x
        np.testing.assert_allclose(params["w"], y, rtol=1e-5)
        np.testing.assert_allclose(optim.eval_params(state, params)["w"], x, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in TABLE if not name.startswith("schedule_free")])
def test_other_optimisers_evaluate_what_they_train(name: str):
    make, numbers, options = TABLE[name]
    params, state = trained(make(total_steps=4, **COMMON, **numbers, **options))
    assert optim.eval_params(state, params) is params


MOMENTUM = optim.one_cycle_momentum(warmup=0.5, low=0.6, high=0.95)


def test_sgd_uses_the_momentum_of_each_update_as_torch_does():
    w, m, lr = np.asarray([1.0, -2.0]), np.zeros(2), 0.1
    momenta = [float(MOMENTUM(jnp.int32(i), 6)) for i in range(6)]
    assert len({round(x, 4) for x in momenta}) > 3
    for got, momentum, g in zip(
        run(sgd(lr, total_steps=6, momentum_schedule=MOMENTUM)), momenta, GRADIENTS * 3, strict=True
    ):
        m = momentum * m + np.asarray(g["w"], np.float64)
        w = w - lr * m
        np.testing.assert_allclose(got["w"], w, rtol=1e-5)


def test_adamw_uses_the_momentum_of_each_update_as_torch_does():
    lr, b2, eps, decay = 0.01, 0.99, 1e-8, 0.1
    w, m, v = np.array([1.0, -2.0]), np.zeros(2), np.zeros(2)
    optimizer = adamw(lr, total_steps=6, b2=b2, eps=eps, weight_decay=decay, momentum_schedule=MOMENTUM)
    for t, (got, gradient) in enumerate(zip(run(optimizer), GRADIENTS * 3, strict=True), 1):
        b1, g = float(MOMENTUM(jnp.int32(t - 1), 6)), np.asarray(gradient["w"], np.float64)
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        w = w - lr * ((m / (1 - b1**t)) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * w)
        np.testing.assert_allclose(got["w"], w, rtol=1e-5)


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
    change, _ = plain.update(gradient(0), plain.init(TREE), TREE)
    scaled, _ = grouped.update(gradient(0), grouped.init(TREE), TREE)
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
    change, _ = optimizer.update(gradient(0), optimizer.init(TREE), TREE)
    assert all(np.all(x == 0) for x in map(np.asarray, jax.tree.leaves(change["layers"])))
    np.testing.assert_allclose(np.linalg.norm(change["embed"]["embedding"]), 0.5, rtol=1e-6)


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
