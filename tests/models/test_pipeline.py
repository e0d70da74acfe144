from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import tree
from adaptlab.adapt import full, lora
from adaptlab.data import Batch
from adaptlab.models import BertShape, LlamaShape, bert, language_modelling, llama
from adaptlab.models.one_f_one_b import pipelined
from adaptlab.models.pipeline import bubble_fraction
from adaptlab.shard import Placement, computing, make_mesh, place

ROWS, T, V = 8, 8, 24
KEY = jax.random.key(3)
MODEL = llama(LlamaShape(V, 16, 4, 4, 2, 6, 20, tied=True))  # tied: both ends move one table
SHALLOW = llama(LlamaShape(V, 16, 2, 2, 1, 4, 20, tied=True))
METHODS = {"full": full(), "lora": lora(2)}


def batch_of(rows: int) -> Batch:
    rng = np.random.default_rng(rows)
    tokens, targets = (jnp.asarray(rng.integers(0, V, (rows, T), np.int32)) for _ in range(2))
    segments = jnp.asarray(np.sort(rng.integers(0, 3, (rows, T), np.int32), axis=1))
    positions = jnp.asarray(np.tile(np.arange(T, dtype=np.int32), (rows, 1)))
    return Batch(tokens, targets, segments, positions, jnp.asarray(rng.random((rows, T)).astype(np.float32)))


BATCH = batch_of(ROWS)


def scattered(params: Any, seed: int) -> Any:
    """Weights at random, biases and scales too, of a size that rounding errors do not grow on."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + 0.05 * jnp.asarray(rng.normal(size=x.shape).astype(np.float32)), params)


def value_and_gradient(loss: Any, method: str, placement: Placement | None = None) -> Any:
    def run(delta: Any, base: Any, batch: Batch) -> Any:
        def total(delta: Any) -> Any:
            mean = loss(METHODS[method].bind(base, delta), batch, KEY)
            return mean.sum, mean.weight

        with computing(placement):
            return jax.value_and_grad(total, has_aux=True)(delta)

    return jax.jit(run)


@pytest.fixture(scope="module", params=["lora", pytest.param("full", marks=pytest.mark.slow)])
def alone(request: Any) -> Any:
    base = scattered(jax.jit(MODEL.init)(jax.random.key(0)), 0)
    delta = scattered(METHODS[request.param].init(jax.random.key(1), base), 1)
    found = value_and_gradient(language_modelling(MODEL), request.param)(delta, base, BATCH)
    return request.param, base, delta, found


def meshed(method: str, sizes: dict[str, int], schedule: str, base: Any, delta: Any) -> Any:
    devices = jax.devices()[: int(np.prod(list(sizes.values())))]
    placement = Placement(make_mesh(**sizes, devices=devices), MODEL.axes())
    loss = pipelined(language_modelling(MODEL), microbatches=4, schedule=schedule)
    where = placement.shardings(METHODS[method].axes(placement.axes), delta)
    batch = place(BATCH, jax.tree.map(lambda _: placement.batch, BATCH))
    given = place(delta, where), place(base, placement.shardings(placement.axes, base)), batch
    return value_and_gradient(loss, method, placement)(*given)


def more(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("sizes", "schedule"),
    [
        ({"stage": 2, "data": 2, "tensor": 2}, "1f1b"),
        more({"stage": 2, "data": 2, "tensor": 2}, "gpipe"),
        *(more({"stage": 4}, s) for s in ("1f1b", "gpipe")),
        *(more({"stage": 4, "data": 2}, s) for s in ("1f1b", "gpipe")),
        *(more({"stage": 2, "fsdp": 2}, s) for s in ("1f1b", "gpipe")),
        *(more({"stage": 2, "context": 2}, s) for s in ("1f1b", "gpipe")),
    ],
    ids=str,
)
def test_loss_and_gradient_through_stages_are_those_of_one_device(alone: Any, sizes: Any, schedule: str):
    method, base, delta, ((loss, weight), gradient) = alone
    (got_loss, got_weight), got = meshed(method, sizes, schedule, base, delta)
    np.testing.assert_allclose((got_loss, got_weight), (loss, weight), rtol=1e-5)
    for path, wanted in tree.flatten(gradient).items():
        have = tree.flatten(got)[path]
        np.testing.assert_allclose(have, wanted, rtol=1e-5, atol=1e-5 * np.abs(wanted).max(), err_msg=path)


def peak(schedule: str, microbatches: int) -> int:
    """Bytes of temporaries of the gradient, with microbatches of two rows each."""
    placement = Placement(make_mesh(stage=2, devices=jax.devices()[:2]), SHALLOW.axes())
    loss = pipelined(language_modelling(SHALLOW), microbatches=microbatches, schedule=schedule)
    base = jax.eval_shape(SHALLOW.init, KEY)
    where = placement.shardings(placement.axes, base)
    base = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), base, where)
    rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), batch_of(2 * microbatches))
    program = value_and_gradient(loss, "full", placement).lower(base, base, rows).compile()
    return program.memory_analysis().temp_size_in_bytes


def test_memory_grows_with_microbatches_under_gpipe_and_not_under_1f1b():
    few, many = peak("1f1b", 4), peak("1f1b", 32)
    assert many < 1.25 * few
    assert peak("gpipe", 32) > 4 * many


def test_elsewhere_a_pipelined_loss_is_the_loss():
    base = jax.eval_shape(MODEL.init, KEY)

    def program(loss: Any) -> str:
        return str(jax.make_jaxpr(loss)(base, BATCH, KEY))

    loss = language_modelling(MODEL)
    assert program(pipelined(loss, microbatches=4)) == program(loss)


def test_only_what_trains_gets_a_gradient():
    loss = pipelined(language_modelling(MODEL), microbatches=4)
    base = jax.eval_shape(MODEL.init, KEY)
    placement = Placement(make_mesh(stage=2, devices=jax.devices()[:2]), MODEL.axes())

    def multiplies(method: str) -> bool:
        """Whether there is a product `[F, D]`: the gradient of a feed-forward matrix."""
        delta = jax.eval_shape(METHODS[method].init, KEY, base)
        program = str(jax.make_jaxpr(value_and_gradient(loss, method, placement))(delta, base, BATCH))
        return "f32[20,16] = dot_general" in program

    assert multiplies("full")
    assert not multiplies("lora")


@pytest.mark.slow
def test_second_derivatives_go_through_gpipe():
    base = scattered(jax.jit(MODEL.init)(jax.random.key(0)), 0)
    direction = scattered(base, 1)
    loss = language_modelling(MODEL)

    def product(placement: Placement | None) -> Any:
        def gradient(base: Any) -> Any:
            with computing(placement):
                return jax.grad(lambda base: loss(base, BATCH, KEY).sum)(base)

        return tree.flatten(jax.jit(lambda: jax.jvp(gradient, (base,), (direction,))[1])())

    wanted = product(None)
    got = product(Placement(make_mesh(stage=4, data=2), MODEL.axes()))
    for path, x in wanted.items():
        np.testing.assert_allclose(got[path], x, rtol=1e-4, atol=1e-5 * np.abs(x).max(), err_msg=path)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_dropout_is_drawn_anew_for_each_microbatch_and_repeats_with_its_key(schedule: str):
    base = scattered(jax.jit(MODEL.init)(jax.random.key(0)), 0)
    same = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), BATCH)
    placement = Placement(make_mesh(stage=2, devices=jax.devices()[:2]), MODEL.axes())

    def losses(rate: Any) -> list[float]:
        loss = pipelined(language_modelling(MODEL, dropout=rate), microbatches=4, schedule=schedule)
        run = value_and_gradient(loss, "full", placement)
        return [float(run(base, base, rows)[0][0]) for rows in (same, same)]

    plain, (one, again) = losses(None)[0], losses(jnp.asarray(0.3))
    assert one == again
    assert abs(one - plain) > 1e-3 * abs(plain)


@pytest.mark.parametrize(
    ("sizes", "microbatches", "message"),
    [
        ({"stage": 8}, 4, r"depth=4 does not divide over stage=8; choose stage from \[1, 2, 4\]"),
        ({"stage": 4, "data": 2}, 8, r"8 rows over 2 devices .* microbatches=8; choose from \[1, 2, 4\]"),
        ({"stage": 4, "data": 2}, 3, r"microbatches=3; choose from \[1, 2, 4\]"),
    ],
)
@pytest.mark.parametrize("schedule", ["1f1b", "gpipe"])
def test_sizes_that_do_not_divide_are_errors_that_say_what_does(sizes, microbatches, message, schedule):
    loss = pipelined(language_modelling(MODEL), microbatches=microbatches, schedule=schedule)
    base = jax.eval_shape(MODEL.init, KEY)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(value_and_gradient(loss, "full", Placement(make_mesh(**sizes), MODEL.axes())), base, base, BATCH)


def test_what_a_pipeline_does_not_have_is_refused():
    placement = Placement(make_mesh(stage=8), MODEL.axes())
    base = jax.eval_shape(MODEL.init, KEY)

    def hidden(base: Any) -> Any:
        with computing(placement):
            return MODEL.intermediates(base, BATCH.tokens, kinds=("hidden",))

    with pytest.raises(ValueError, match=r"keeps no intermediates .* stage=1"):
        jax.eval_shape(hidden, base)
    with pytest.raises(ValueError, match=r"schedule='zero' is not one of \['1f1b', 'gpipe'\]"):
        pipelined(language_modelling(MODEL), microbatches=2, schedule="zero")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="microbatches=0 must be at least 1"):
        pipelined(language_modelling(MODEL), microbatches=0)


def test_the_bubble_is_the_share_of_ticks_in_which_a_stage_has_no_microbatch():
    for P, m in ((1, 3), (2, 4), (4, 8)):
        busy = [[0 <= t - s < m for t in range(m + P - 1)] for s in range(P)]
        assert bubble_fraction(P, m) == pytest.approx(1 - np.mean(busy))
    with pytest.raises(ValueError, match="stages=0 and microbatches=2"):
        bubble_fraction(0, 2)


@pytest.mark.slow
def test_an_encoder_goes_through_stages_too():
    model = bert(BertShape(V, 16, 4, 4, 20, 8))
    params = scattered(jax.jit(model.init)(jax.random.key(0)), 0)

    def gradient(placement: Placement | None) -> Any:
        def total(params: Any) -> jax.Array:
            with computing(placement):
                return jnp.sum(jnp.square(model.apply(params, BATCH.tokens, segments=BATCH.segments)))

        return tree.flatten(jax.jit(jax.grad(total))(params))

    got, wanted = gradient(Placement(make_mesh(stage=4, data=2), model.axes())), gradient(None)
    largest = max(np.abs(x).max() for x in wanted.values())
    for path, x in wanted.items():
        if path == "layers/attention/key/bias":  # a softmax does not see it: both are rounding
            assert max(np.abs(x).max(), np.abs(got[path]).max()) < 1e-5 * largest
        else:
            np.testing.assert_allclose(got[path], x, rtol=1e-5, atol=1e-5 * np.abs(x).max(), err_msg=path)
