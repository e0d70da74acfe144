"""Parameter groups in a sweep, in a model and on a mesh."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptlab import tree
from adaptlab.adapt import full, lora
from adaptlab.optim import adamw
from adaptlab.optim.group_depth import by_depth, freeze_below, gradual_unfreezing
from adaptlab.optim.group_rules import by_pattern, combine, group
from adaptlab.optim.groups import add_decayed_weights, bias_corrected, mask_frozen, scale_by_group
from adaptlab.shard import Placement, make_mesh, place
from adaptlab.train import Program, device_numbers, make_program
from tests.laws.table import MODELS, scattered
from tests.optim.grouped import ADAM, GRADS, LR, MODEL, PARAMS, chain


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (lambda x: by_depth(x), (1.0, 2.0, 2.6)),
        (lambda x: gradual_unfreezing(x), (0.0, 0.1, 0.3)),
        (lambda x: freeze_below(x), (0.0, 1.0, 3.0)),
        (lambda x: by_pattern({".*/kernel": group(x, decay=x, start=x), ".*": group()}), (0.0, 0.2, 0.5)),
        (lambda x: combine({"a": by_depth(1.0 + x), "b": gradual_unfreezing(x)}), (0.0, 0.1, 0.2)),
    ],
    ids=["by_depth", "gradual", "freeze_below", "by_pattern", "combine"],
)
def test_a_member_of_a_sweep_is_the_run_alone(make: Any, numbers: tuple[float, ...]):
    def final(x: Any) -> Any:
        optimizer = chain(optax.scale_by_adam(**ADAM), make(x), clip=1.0)
        params, state = PARAMS, optimizer.init(PARAMS)
        for grad in GRADS[:5]:
            updates, state = optimizer.update(grad, state, params)
            params = optax.apply_updates(params, updates)
        return params

    swept = jax.jit(jax.vmap(final))(jnp.asarray(numbers, jnp.float32))
    for i, x in enumerate(numbers):
        alone = jax.jit(final)(x)  # traced, as in a program
        known = final(x)  # and known, as for the table
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=2e-6, atol=1e-7), swept, alone)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), alone, known)
    assert np.ptp(np.asarray(swept["layers"]["ffn"]["kernel"]), axis=0).max() > 1e-4


def test_known_and_traced_fractions_start_at_the_same_update():
    fractions, totals = np.linspace(0, 1, 41), (7, 10, 30, 1000, 12345)
    traced = jax.jit(lambda x, total: gradual_unfreezing(x).start(PARAMS, total), static_argnums=1)
    for total in totals:
        for x in fractions:
            jax.tree.map(
                np.testing.assert_array_equal,
                jax.device_get(traced(np.float32(x), total)),
                gradual_unfreezing(float(x)).start(PARAMS, total),
            )


TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 6)))


@pytest.mark.parametrize("adaptation", [full(), lora(2)], ids=["full", "lora"])
def test_a_llama_thaws_layer_by_layer_in_a_sweep_over_the_factor(adaptation: Any):
    base = jax.jit(MODEL.init)(jax.random.key(0))
    delta = adaptation.init(jax.random.key(1), base)
    total = 8

    def train(factor: jax.Array) -> Any:
        groups = combine([by_depth(factor), gradual_unfreezing()])
        parts = [mask_frozen(groups, total), bias_corrected(optax.scale_by_adam(), groups, total)]
        optimizer = optax.chain(
            *parts, add_decayed_weights(0.1, groups), optax.scale(-LR), scale_by_group(groups, total)
        )

        def nll(delta: Any) -> jax.Array:
            logits = MODEL.apply(adaptation.bind(base, delta), TOKENS)
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), TOKENS[..., None], axis=-1))

        def step(carry: Any, _: None) -> Any:
            delta, state = carry
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(jax.grad(nll)(delta), state, delta)
            delta = optax.apply_updates(delta, updates)
            return (delta, state), delta

        return jax.lax.scan(step, (delta, optimizer.init(delta)), None, length=total)[1]

    starts = tree.flatten(gradual_unfreezing().start(delta, total))
    swept = jax.device_get(jax.jit(jax.vmap(train))(jnp.asarray([1.0, 2.6])))
    moved = tree.flatten(jax.tree.map(lambda x, x0: x != x0, swept, jax.device_get(delta)))
    for path, change in moved.items():
        stacked = path.startswith("layers/")
        # [members, steps, layers or 1, elements]
        change = change.reshape(2, total, change.shape[2] if stacked else 1, -1)
        for i, start in enumerate(np.broadcast_to(starts[path].ravel(), change.shape[2])):
            assert not change[:, : int(start), i].any(), (path, i)
            # B is 0 until its first update, so that A's first gradient is 0: A moves by its decay alone.
            assert change[:, int(start), i].any(-1).all(), (path, i)
    want = {0.0, 2.0, 4.0, 6.0} if "embed" in delta else {0.0, 3.0, 5.0}
    assert {float(s) for x in starts.values() for s in np.ravel(x)} == want


def test_groups_on_a_mesh_are_groups_on_one_device():
    row, (numbers, seed) = MODELS["llama_untied_gqa"], device_numbers({"factor": 2.6}, 0)
    base = scattered(jax.jit(row.model.init)(jax.random.key(0)), 0)
    placement = Placement(make_mesh(data=4, tensor=2), row.model.axes())

    def program(placement: Placement | None) -> Program:
        def optim(n: Any) -> Any:
            groups = combine([by_depth(n["factor"]), gradual_unfreezing(0.5)])
            return adamw(0.01, total_steps=4, clip=1.0, weight_decay=0.1, groups=groups)

        return make_program(lambda _: row.loss, lambda _: full(), optim, placement=placement)

    deltas = []
    for there in (None, placement):
        one, place_batch = program(there), lambda x, there=there: x if there is None else jax.device_put(x, there.batch)
        here = base if there is None else place(base, there.shardings(there.axes, base))
        state = one.init(numbers, seed, here)
        for i in range(3):
            state, _ = one.step(numbers, seed, state, here, place_batch(row.batch(i)))
        deltas.append(jax.device_get(state.delta))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), *deltas)
    np.testing.assert_array_equal(deltas[1]["embed"]["embedding"], base["embed"]["embedding"])
