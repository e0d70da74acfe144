"""Rank allocation: claims about which triples stay, and when."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptlab import tree
from adaptlab.adapt import adalora as adalora_adaptation
from adaptlab.optim import adalora, adamw, allocate_ranks
from tests.laws.table import scattered

L, D, F, R, T = 2, 5, 4, 6, 20
BASE = {"layers": {name: {"kernel": jnp.ones((L, D, F))} for name in ("q", "v")}}
PARAMS = scattered(adalora_adaptation(R).init(jax.random.key(0), BASE), 0)
STILL = optax.scale(0.0)
NUMBERS: dict[str, Any] = {"target_rank": 2.0, "warmup": 0.2, "final": 0.3, "every": 2.0}


def grads(step: int) -> Any:
    return scattered(jax.tree.map(jnp.zeros_like, PARAMS), 10 + step, scale=1.0)


class Moment(NamedTuple):
    """The parameters after an update, and which triples it kept."""

    params: Any
    kept: Any


def run(
    inner: Any = STILL, params: Any = PARAMS, steps: int = T, gradient: Any = grads, **numbers: Any
) -> list[Moment]:
    """What there is after each update."""
    transform = allocate_ranks(inner, total_steps=T, **NUMBERS | numbers)
    state: Any = transform.init(params)
    update, history = jax.jit(transform.update), []
    for step in range(steps):
        updates, state = update(gradient(step), state, params)
        params = optax.apply_updates(params, updates)
        history.append(Moment(params, state.kept))
    return history


def kept(moment: Moment, below: str = "") -> int:
    """How many triples the last allocation kept."""
    return sum(int(np.sum(x)) for path, x in tree.flatten(moment.kept).items() if path.startswith(f"layers/{below}"))


def ranks(params: Any) -> int:
    """How many λ are not zero."""
    return sum(int(np.sum(np.asarray(x) != 0)) for path, x in tree.flatten(params).items() if path.endswith("/lambda"))


def test_the_budget_is_whole_then_cubic_then_the_target():
    left = [kept(moment) for moment in run(every=1.0)]
    b0, bt, begin, settled = 4 * R, 4 * 2, 4, T - 6
    wanted = []
    for t in range(1, T + 1):
        share = min(1.0, max(0.0, 1 - (t - begin) / (settled - begin))) if t > begin else 1.0
        wanted.append(int(bt + (b0 - bt) * share**3))
    assert left == wanted


def test_ranks_are_allocated_only_every_so_many_updates():
    left = [kept(moment) for moment in run(every=5.0)]
    changed = [t for t in range(2, T + 1) if left[t - 1] != left[t - 2]]
    assert changed == [5, 10, 14]  # and when they settle


def test_the_important_stay():
    """One triple of one layer has all the gradient, in every part of it."""

    def one(step: int) -> Any:
        sign = 1.0 if step % 2 else 2.0  # what never varies has no uncertainty, and so no importance

        def gradient(path: str, x: jax.Array) -> jax.Array:
            g = np.zeros(x.shape, np.float32)
            if path.startswith("layers/v"):
                index = {"p": np.s_[1, :, 3], "a": np.s_[1, 3], "q": np.s_[1, 3, :]}[path[-1]]
                g[index] = sign
            return jnp.asarray(g)

        return tree.map_with_path(gradient, PARAMS)

    last = run(gradient=one, target_rank=0.25)[-1]
    assert kept(last) == ranks(last.params) == 1
    assert last.params["layers"]["v"]["kernel"]["lambda"][1, 3] != 0


def test_a_matrix_may_get_more_ranks_than_another():
    def uneven(step: int) -> Any:
        return tree.map_with_path(lambda path, g: g * (1.0 if "/q/" in path else 1e-3), grads(step))

    last = run(gradient=uneven)[-1]
    assert kept(last, "q") == 8
    assert kept(last, "v") == 0


def test_a_triple_can_come_back_until_the_ranks_settle_and_not_after():
    moving = optax.sgd(0.1)
    history = [ranks(moment.params) for moment in run(moving, every=4.0)]
    assert history[7] < 4 * R == history[8]  # pruned at 8, all of them train at 9
    assert history[13:] == [8] * 7


def test_before_its_warmup_is_over_it_is_the_optimiser_inside():
    plain = adamw(0.1, total_steps=T)
    params, state = PARAMS, plain.init(PARAMS)
    for step in range(4):
        with jax.numpy_dtype_promotion("standard"):
            updates, state = plain.update(grads(step), state, params)
        params = optax.apply_updates(params, updates)
    ours = run(adamw(0.1, total_steps=T), steps=4)[-1].params
    for path, x in tree.flatten(params).items():
        np.testing.assert_allclose(tree.flatten(ours)[path], x, rtol=1e-5, atol=1e-6)


def test_importance_is_the_product_of_the_averages():
    transform = allocate_ranks(STILL, total_steps=T, **NUMBERS, b1=0.5, b2=0.25)
    state: Any = transform.init(PARAMS)
    mean = spread = 0.0
    for step in range(3):
        _, state = transform.update(grads(step), state, PARAMS)
        now = np.abs(np.asarray(PARAMS["layers"]["q"]["kernel"]["p"] * grads(step)["layers"]["q"]["kernel"]["p"]))
        mean = 0.5 * mean + 0.5 * now
        spread = 0.25 * spread + 0.75 * np.abs(now - mean)
    np.testing.assert_allclose(state.sensitivity["layers"]["q"]["kernel"]["p"], mean, rtol=1e-5)
    np.testing.assert_allclose(state.uncertainty["layers"]["q"]["kernel"]["p"], spread, rtol=1e-5)


def test_other_leaves_are_left_alone():
    more = PARAMS | {"head": {"kernel": jnp.ones(3)}}

    def gradient(step: int) -> Any:
        return grads(step) | {"head": {"kernel": jnp.ones(3)}}

    last = run(optax.sgd(0.1), more, gradient=gradient)[-1].params
    np.testing.assert_allclose(last["head"]["kernel"], 1.0 - 0.1 * T, rtol=1e-5)


def test_the_averages_lie_where_their_parameters_lie():
    transform = adalora(0.1, total_steps=T)
    names = tree.map_with_path(lambda path, x: path, PARAMS)
    found: Any = optax.tree_map_params(
        transform,
        lambda x, name: name,
        transform.init(PARAMS),
        names,
        is_leaf=lambda x: isinstance(x, optax.MaskedNode),
    )
    assert found.sensitivity == found.uncertainty == names
    assert found.kept["layers"]["q"]["kernel"]["lambda"] == "layers/q/kernel/lambda"


def test_every_number_may_be_traced_and_mapped_over():
    names = ["lr", "target_rank", "warmup", "final", "every", "importance_b1", "importance_b2"]

    def last(values: jax.Array) -> Any:
        numbers: Any = {name: values[i] for i, name in enumerate(names)}
        transform = adalora(total_steps=6, **numbers)
        params, state = PARAMS, transform.init(PARAMS)
        for step in range(6):
            updates, state = transform.update(grads(step), state, params)
            params = optax.apply_updates(params, updates)
        return params

    rows = jnp.asarray([[0.1, 2.0, 0.2, 0.3, 1.0, 0.85, 0.85], [0.05, 3.0, 0.0, 0.5, 2.0, 0.5, 0.9]])
    together = jax.jit(jax.vmap(last))(rows)
    for i, row in enumerate(rows):
        alone = jax.jit(last)(row)
        for path, x in tree.flatten(alone).items():
            np.testing.assert_allclose(tree.flatten(together)[path][i], x, rtol=1e-4, atol=1e-6)
    assert [ranks(jax.tree.map(lambda x, i=i: x[i], together)) for i in range(2)] == [8, 12]


def test_parameters_without_triples_are_an_error():
    with pytest.raises(ValueError, match=r"allocate_ranks finds no AdaLoRA \(p, lambda, q\) among \['a', 'b'\]"):
        adalora(0.1, total_steps=3).init({"a": jnp.ones(2), "b": jnp.ones(2)})
