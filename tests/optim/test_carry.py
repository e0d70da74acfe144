"""An optimiser's state that is carried over goes on where it stopped, without bias, or is refused by name."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptlab import config
from adaptlab.optim import adamw, linear, sgd
from adaptlab.optim.carry import carry, load_moments, moments, save_moments

PARAMS = {"a": {"w": jnp.asarray([1.0, -2.0, 3.0])}, "b": jnp.asarray([[0.5]])}
RATES = {"b1": 0.8, "b2": 0.97}


def gradient(step: int) -> Any:
    rng = np.random.default_rng(step)
    return jax.tree.map(lambda x: jnp.asarray(rng.normal(1.0, 1.0, x.shape), jnp.float32), PARAMS)


def train(optimizer: optax.GradientTransformation, state: Any, start: int, updates: int) -> tuple[list[Any], Any]:
    seen = []
    for step in range(start, start + updates):
        update, state = optimizer.update(gradient(step), state, PARAMS)
        seen.append(update)
    return seen, state


def constant_adamw() -> optax.GradientTransformation:
    return adamw(0.01, total_steps=100, **RATES)


def adam_of(state: Any) -> Any:
    (found,) = [x for x in state if isinstance(x, optax.ScaleByAdamState)]
    return found


def assert_equal(got: Any, wanted: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, got, wanted)


@pytest.mark.parametrize("make", [constant_adamw, lambda: sgd(0.1, total_steps=100, momentum=0.9)])
def test_carried_whole_the_updates_are_those_of_a_training_that_never_stopped(make: Any):
    optimizer = make()
    unbroken, _ = train(optimizer, optimizer.init(PARAMS), 0, 12)
    _, old = train(optimizer, optimizer.init(PARAMS), 0, 7)
    state = carry(optimizer.init(PARAMS), moments(old, **RATES), **RATES)
    resumed, _ = train(optimizer, state, 7, 5)
    assert_equal(resumed, unbroken[7:])


def test_kept_not_at_all_the_state_is_the_fresh_one():
    optimizer = constant_adamw()
    _, old = train(optimizer, optimizer.init(PARAMS), 0, 7)
    fresh = optimizer.init(PARAMS)
    assert_equal(carry(fresh, moments(old, **RATES), keep=0.0, **RATES), fresh)


@pytest.mark.parametrize("keep", [0.03, 0.3, 0.7, 0.95])
def test_decayed_moments_stay_unbiased_under_the_corrected_count(keep: float):
    """With a constant gradient g, m̂ = g and v̂ = g² must hold before and after any number of further updates."""
    optimizer = optax.scale_by_adam(**RATES, eps=0.0)
    g = {"w": jnp.asarray([2.0, -0.5])}
    with jax.numpy_dtype_promotion("standard"):
        state = optimizer.init(g)
        for _ in range(40):
            _, state = optimizer.update(g, state)
        carried = carry(optimizer.init(g), moments(state, **RATES), keep=keep, **RATES)
        assert 0 < int(carried.count) < 40
        state = carried
        for _ in range(5):
            updates, state = optimizer.update(g, state)
            np.testing.assert_allclose(updates["w"], jnp.sign(g["w"]), rtol=2e-5)
    n, b2 = int(carried.count), RATES["b2"]
    np.testing.assert_allclose(carried.nu["w"], (1 - b2**n) * g["w"] ** 2, rtol=1e-5)
    # The factor on the second moment is `keep`, up to the rounding of the count to a whole number of updates.
    half_update = 0.5 * (1 - b2) / (1 - b2**40)
    np.testing.assert_allclose(carried.nu["w"] / ((1 - b2**40) * g["w"] ** 2), keep, atol=1.2 * half_update)


def test_moments_of_other_betas_are_brought_to_the_new_ones():
    """The saved weights sum to 1-β^t with the old β: a constant gradient must still be read as itself."""
    old_betas, g = {"b1": 0.7, "b2": 0.9}, {"w": jnp.asarray([2.0, -0.5])}
    old, new = optax.scale_by_adam(**old_betas, eps=0.0), optax.scale_by_adam(**RATES, eps=0.0)
    with jax.numpy_dtype_promotion("standard"):
        _, state = old.update(g, old.init(g))
        carried = carry(new.init(g), moments(state, **old_betas), **RATES)
        updates, _ = new.update(g, carried)
    np.testing.assert_allclose(updates["w"], jnp.sign(g["w"]), rtol=1e-6)


def test_the_new_trainings_schedule_begins_afresh():
    optimizer = adamw(0.01, total_steps=10, schedule=linear(warmup=0.5), **RATES)
    _, old = train(optimizer, optimizer.init(PARAMS), 0, 7)
    state = carry(optimizer.init(PARAMS), moments(old, **RATES), **RATES)
    assert int(adam_of(state).count) == 7
    others = [x for x in jax.tree.leaves(state[-1]) if jnp.issubdtype(x.dtype, jnp.integer)]
    assert others
    assert all(int(x) == 0 for x in others)


def test_a_very_long_training_is_carried_to_the_bit_although_its_count_cannot_be_read_from_the_weights():
    optimizer = constant_adamw()
    _, old = train(optimizer, optimizer.init(PARAMS), 0, 3)
    adam = adam_of(old)._replace(count=jnp.asarray(1_000_000, jnp.int32))
    old = tuple(adam if isinstance(x, optax.ScaleByAdamState) else x for x in old)
    got = adam_of(carry(optimizer.init(PARAMS), moments(old, **RATES), **RATES))
    assert int(got.count) == 1_000_000
    assert_equal(got, adam)


def test_keep_may_differ_between_the_runs_of_one_program():
    optimizer = constant_adamw()
    _, old = train(optimizer, optimizer.init(PARAMS), 0, 20)
    saved, traces = moments(old, **RATES), []

    @jax.jit
    def init(keep: jax.Array, saved: Any) -> Any:
        traces.append(keep)
        return carry(optimizer.init(PARAMS), saved, keep=keep, **RATES)

    keeps = jnp.asarray([0.0, 0.4, 1.0])
    together = jax.vmap(init, in_axes=(0, None))(keeps, saved)
    alone = [init(keep, saved) for keep in keeps]
    assert len(traces) == 1  # alone, the three are one program
    jax.tree.map(lambda x, *ys: np.testing.assert_allclose(x, jnp.stack(ys), rtol=1e-6), together, *alone)
    assert adam_of(together).count.tolist() == [0, int(adam_of(alone[1]).count), 20]


def test_a_config_gives_the_number_and_the_program_the_rest():
    node = {"_target_": "adaptlab.optim.carry.carry", "keep": 0.5}
    skeleton, numbers = config.split(config.validate(node))
    assert numbers == {"keep": 0.5}
    optimizer = constant_adamw()
    _, old = train(optimizer, optimizer.init(PARAMS), 0, 7)
    given = {"opt_state": optimizer.init(PARAMS), "saved": moments(old, **RATES), **RATES}
    assert_equal(
        config.instantiate(config.fill(skeleton, {"keep": jnp.float32(0.5)}), **given),
        carry(given["opt_state"], given["saved"], keep=0.5, **RATES),
    )


def test_a_state_inside_another_transform_is_found():
    wrapped = optax.chain(optax.clip(1.0), optax.chain(optax.scale_by_adam(), optax.scale(-1.0)))
    with jax.numpy_dtype_promotion("standard"):
        _, old = wrapped.update(gradient(0), wrapped.init(PARAMS), PARAMS)
    assert_equal(carry(wrapped.init(PARAMS), moments(old)), old)


@pytest.mark.parametrize(
    ("params", "listed"),
    [
        ({"a": {"w": jnp.ones(3)}}, ["= adam/mu/a/w (3,)", "- adam/mu/b (1, 1)"]),
        ({**PARAMS, "c": jnp.ones(2)}, ["- adam/mu/c (2,)", "= adam/nu/b (1, 1)"]),
        ({"a": {"w": jnp.ones(4)}, "b": jnp.ones((1, 1))}, ["! adam/mu/a/w (4,)", "! adam/mu/a/w (3,)"]),
    ],
)
def test_other_weights_are_refused_with_both_sides_listed(params: Any, listed: list[str]):
    optimizer = constant_adamw()
    _, old = train(optimizer, optimizer.init(PARAMS), 0, 1)
    with pytest.raises(ValueError, match="very weights") as error:
        carry(optimizer.init(params), moments(old))
    assert all(line in str(error.value) for line in listed)


def test_adams_moments_are_not_put_into_heavy_ball_momentum():
    _, old = train(constant_adamw(), constant_adamw().init(PARAMS), 0, 1)
    fresh = sgd(0.1, total_steps=10, momentum=0.9).init(PARAMS)
    with pytest.raises(ValueError, match=r"(?s)- trace/trace/b.*- adam/mu/b"):
        carry(fresh, moments(old))


def test_an_optimiser_without_moments_is_named_as_such():
    with pytest.raises(ValueError, match="no moments"):
        moments(optax.scale(1.0).init(PARAMS))


def test_moments_come_back_from_disk_as_they_were(tmp_path: Path):
    optimizer = constant_adamw()
    _, old = train(optimizer, optimizer.init(PARAMS), 0, 3)
    save_moments(tmp_path / "optimizer.safetensors", old, base="abc", **RATES)
    loaded = load_moments(tmp_path / "optimizer.safetensors", base="abc")
    assert_equal(loaded, moments(old, **RATES))
    assert_equal(carry(optimizer.init(PARAMS), loaded, **RATES)[1], adam_of(old))


def test_moments_of_another_base_and_damaged_ones_are_refused(tmp_path: Path):
    path = tmp_path / "optimizer.safetensors"
    with pytest.raises(ValueError, match="There is no optimiser state"):
        load_moments(path)
    _, old = train(constant_adamw(), constant_adamw().init(PARAMS), 0, 3)
    save_moments(path, old, base="abc")
    with pytest.raises(ValueError, match="abc, not to def"):
        load_moments(path, base="def")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match="damaged"):
        load_moments(path)
