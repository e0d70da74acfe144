"""What is frozen keeps its bits until its update, and then trains as if training had begun."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptlab import tree
from adaptlab.optim import adafactor
from adaptlab.optim.group_depth import freeze_below, gradual_unfreezing
from adaptlab.optim.groups import bias_corrected, mask_frozen, scale_by_group
from tests.optim.grouped import ADAM, GRADS, LR, PARAMS, STEPS, UNFREEZING, L, chain, layer_of, pieces, run

CORES = {
    "adam": lambda: optax.scale_by_adam(),
    "momentum": lambda: optax.trace(decay=0.9, nesterov=True),
    "lion": lambda: optax.scale_by_lion(),
    "rmsprop": lambda: optax.scale_by_rms(initial_scale=0.1),
    "amsgrad": lambda: optax.scale_by_amsgrad(),
    "chained": lambda: optax.chain(optax.scale_by_adam(), optax.trace(decay=0.5)),
    "factored": lambda: optax.scale_by_factored_rms(min_dim_size_to_factor=4),
}


CORES = {
    "adam": lambda: optax.scale_by_adam(),
    "momentum": lambda: optax.trace(decay=0.9, nesterov=True),
    "lion": lambda: optax.scale_by_lion(),
    "rmsprop": lambda: optax.scale_by_rms(initial_scale=0.1),
    "amsgrad": lambda: optax.scale_by_amsgrad(),
    "chained": lambda: optax.chain(optax.scale_by_adam(), optax.trace(decay=0.5)),
    "factored": lambda: optax.scale_by_factored_rms(min_dim_size_to_factor=4),
}


@pytest.mark.parametrize("core", CORES)
def test_a_frozen_piece_keeps_its_bits_until_its_update_and_moves_at_it(core: str):
    got = pieces(run(chain(CORES[core](), gradual_unfreezing(), clip=0.5)))
    for piece, x in got.items():
        start = int(UNFREEZING[layer_of(piece)])
        assert (x[: start + 1].view(np.int32) == x[0].view(np.int32)).all(), piece
        assert (x[start + 1] != x[start]).mean() > 0.9, piece


@pytest.mark.parametrize("core", CORES)
def test_a_late_piece_trains_as_if_training_had_begun_at_its_start(core: str):
    late = pieces(run(chain(CORES[core](), gradual_unfreezing())))
    for start in (2, 4, 7):
        fresh = pieces(run(chain(CORES[core](), None), grads=GRADS[start:]))
        for piece in (p for p in late if UNFREEZING[layer_of(p)] == start):
            np.testing.assert_allclose(late[piece][start:], fresh[piece], rtol=2e-6, atol=2e-7, err_msg=piece)


def test_a_state_that_was_carried_over_waits_for_its_start():
    """Adam's own count and moments, of an earlier training, go on at s where they stood."""
    groups, adam = gradual_unfreezing(), optax.scale_by_adam(**ADAM)
    corrected = bias_corrected(adam, groups, STEPS)
    with jax.numpy_dtype_promotion("standard"):
        earlier = adam.init(PARAMS)
        for grad in GRADS[:4]:
            _, earlier = adam.update(grad, earlier, PARAMS)
        state = corrected.init(PARAMS)._replace(inner=earlier)
        seen, wanted = [], []
        for grad in GRADS:
            updates, state = corrected.update(grad, state, PARAMS)
            seen.append(updates)
        for grad in GRADS[7:]:
            updates, earlier = adam.update(grad, earlier, PARAMS)
            wanted.append(updates)
    for got, want in zip(seen[7:], wanted, strict=True):
        np.testing.assert_allclose(got["embed"]["embedding"], want["embed"]["embedding"], rtol=2e-6)


def test_what_is_frozen_may_have_any_gradient():
    broken = jax.tree.map(lambda g: g, GRADS[0])
    broken["embed"]["embedding"] = jnp.full((5, 2), jnp.nan)
    broken["layers"]["ffn"]["kernel"] = broken["layers"]["ffn"]["kernel"].at[0].set(jnp.inf)
    plain = run(chain(optax.scale_by_adam(), gradual_unfreezing(), clip=0.5))
    seen = run(chain(optax.scale_by_adam(), gradual_unfreezing(), clip=0.5), grads=[broken, *GRADS[1:]])
    for one, other in zip(plain, seen, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_updates_before_the_start_are_positive_zero():
    for transform in (mask_frozen, scale_by_group):
        t = transform(freeze_below(L), STEPS)
        for bad in (jnp.nan, -jnp.inf, -1.0):
            updates, _ = t.update(jax.tree.map(lambda x, bad=bad: jnp.full_like(x, bad), PARAMS), t.init(PARAMS))
            assert not np.asarray(updates["layers"]["ffn"]["kernel"]).view(np.int32).any()
            np.testing.assert_array_equal(updates["norm"]["scale"], bad)


def test_a_frozen_gradient_does_not_count_in_the_clipping_norm():
    huge = jax.tree.map(lambda g: g, GRADS[0])
    huge["embed"]["embedding"] = 1e6 * huge["embed"]["embedding"]
    optimizer = chain(optax.identity(), freeze_below(0), clip=0.5, decay=0.0, lr=1.0)
    updates, _ = optimizer.update(huge, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(tree.norm(updates), 0.5, rtol=1e-5)


def test_late_adafactor_is_adafactor_of_each_piece_begun_at_its_start():
    made = {"total_steps": STEPS, "momentum": 0.5, "min_size_to_factor": 4, "weight_decay": 0.1}
    late = pieces(run(adafactor(LR, groups=gradual_unfreezing(), **made)))
    shapes = {path: x.shape for path, x in tree.flatten(PARAMS).items()}
    for piece, x in late.items():
        path, start = piece.split("[")[0], int(UNFREEZING[layer_of(piece)])
        layer = int(piece[-2]) if "[" in piece else ...
        assert (x[: start + 1].view(np.int32) == x[0].view(np.int32)).all(), piece
        alone = [{"x": tree.flatten(one)[path][layer]} for one in (PARAMS, *GRADS[start:])]
        assert alone[0]["x"].shape in (shapes[path], shapes[path][1:])
        fresh = pieces(run(adafactor(LR, **made), alone[0], alone[1:]))["x"]
        np.testing.assert_allclose(x[start:], fresh, rtol=2e-6, atol=2e-7, err_msg=piece)
