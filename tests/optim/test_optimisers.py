from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptlab import optim, tree
from adaptlab.optim import adamw, linear, sgd
from adaptlab.optim.group_rules import by_pattern, group
from tests.optim.table import TREE, assert_trees_close, gradient_at, trained

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
        g = gradient_at(step, stack)
        u, state = optimizer.update(g, state, stack)
        for i in range(2):
            alone, states[i] = optimizer.update({"w": g["w"][i]}, states[i], each[i])
            np.testing.assert_allclose(tree.flatten(u)["w"][i], tree.flatten(alone)["w"], rtol=1e-5)


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
    u, _ = optimizer.update(gradient_at(0, params), optimizer.init(params), params)
    values = np.linalg.svd(np.asarray(tree.flatten(u)["dense/kernel"]), compute_uv=False)
    assert np.all((values > 0.6) & (values < 1.3))
    assert np.linalg.svd(np.asarray(gradient_at(0, params)["dense"]["kernel"]), compute_uv=False).max() > 1.5


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
    params: Any = {"w": jnp.asarray(y, jnp.float32)}
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


def test_patterns_of_groups_see_every_path_in_both_parts_of_muon():
    late = {"layers/norm/.*": group(start=0.4), ".*/kernel(/a)?": group(0.5), ".*": group()}
    got, _ = trained(optim.muon(0.02, total_steps=5, groups=by_pattern(late)), steps=range(2))
    np.testing.assert_array_equal(got["layers"]["norm"]["scale"], TREE["layers"]["norm"]["scale"])
    plain, _ = trained(optim.muon(0.02, total_steps=5), steps=range(2))
    assert_trees_close(got["embed"], plain["embed"])
    half, _ = trained(optim.muon(0.01, total_steps=5), steps=range(2))
    assert_trees_close(got["layers"]["out"], half["layers"]["out"])
