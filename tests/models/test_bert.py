from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf, tree
from adaptlab.flops import count_flops
from adaptlab.models import BertShape, Model, bert, bert_classifier
from tests.laws.table import scattered

SHAPE = BertShape(vocab_size=24, width=16, depth=2, heads=4, ffn_width=20, context=12)
MODEL = bert(SHAPE)
PARAMS = scattered(jax.jit(MODEL.init)(jax.random.key(0)), 0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 24, (2, 7), np.int32))
CLASSIFIER = bert_classifier(SHAPE, classes=3, pooling="mean")
HEADED = PARAMS | {"classifier": {"kernel": jnp.ones((16, 3)) * jnp.arange(3.0)[None], "bias": jnp.arange(3.0)}}


def run(model: Model = MODEL, params: Any = PARAMS, tokens: Any = TOKENS, **inputs: Any) -> np.ndarray:
    return np.asarray(jax.jit(model.apply)(params, tokens, **inputs))


@leaf.node
class Rows:
    value: jax.Array

    def rows(self) -> jax.Array:
        return self.value


@leaf.node
class KeysValues:
    k: jax.Array
    v: jax.Array

    def keys_values(self) -> tuple[jax.Array, jax.Array]:
        return self.k, self.v


@leaf.node
class Doubled:
    gain: jax.Array

    def __call__(self, y: jax.Array, x: jax.Array) -> jax.Array:
        return y * self.gain


def moved(segments: Any = None) -> np.ndarray:
    """Whether the activations at t move with the embedding at s: `[T, S]`."""
    tokens = jnp.arange(7, dtype=jnp.int32)[None]

    def at(embedding: jax.Array) -> jax.Array:
        return MODEL.apply(PARAMS | {"embed": {"embedding": embedding}}, tokens, segments=segments)[0, :, 3]

    return np.abs(jax.jit(jax.jacrev(at))(PARAMS["embed"]["embedding"])).sum(-1)[:, :7] > 0


def test_every_token_sees_every_token_of_its_segment_and_no_other():
    assert moved().all()
    segments = np.array([1, 1, 1, 2, 2, 0, 0])
    np.testing.assert_array_equal(moved(jnp.asarray(segments)[None]), segments[:, None] == segments[None, :])


def test_padding_changes_nothing_of_a_text():
    padded = jnp.pad(TOKENS[:, :4], ((0, 0), (0, 3)), constant_values=9)
    segments = jnp.asarray([[1, 1, 1, 1, 0, 0, 0]] * 2)
    for pooling in ("mean", "cls"):
        model = bert(SHAPE, pooling=pooling)
        params = scattered(jax.jit(model.init)(jax.random.key(0)), 0)
        got = run(model, params, padded, segments=segments)
        np.testing.assert_allclose(got, run(model, params, TOKENS[:, :4]), rtol=1e-5, atol=1e-5)
        assert np.abs(got - run(model, params, padded)).max() > 0.01


def test_packed_rows_equal_separate_rows():
    positions = jnp.asarray([[0, 1, 2, 0, 1, 2, 3]])
    segments = jnp.asarray([[1, 1, 1, 2, 2, 2, 2]])
    packed = run(tokens=TOKENS[:1], segments=segments, positions=positions)
    for part in (slice(0, 3), slice(3, 7)):
        np.testing.assert_allclose(packed[:, part], run(tokens=TOKENS[:1, part]), rtol=1e-5, atol=1e-5)


def test_a_row_of_padding_alone_is_finite():
    got = run(CLASSIFIER, HEADED, segments=jnp.asarray([[1] * 7, [0] * 7]))
    np.testing.assert_allclose(got[1], np.arange(3.0), atol=1e-6)  # a mean of zero, and the bias
    assert np.isfinite(got).all()


def test_token_types_and_positions_are_heard():
    types = jnp.asarray([[0, 0, 0, 1, 1, 1, 1]] * 2)
    assert np.abs(run(types=types) - run()).max() > 0.01
    assert np.abs(run(positions=jnp.broadcast_to(jnp.arange(7)[::-1], (2, 7))) - run()).max() > 0.01


def test_the_head_reads_what_pooled_returns():
    pooled = run(bert(SHAPE, pooling="mean"))
    np.testing.assert_allclose(
        run(CLASSIFIER, HEADED), pooled.sum(-1, keepdims=True) * np.arange(3) + np.arange(3), rtol=1e-4, atol=1e-4
    )
    np.testing.assert_array_equal(
        CLASSIFIER.apply(HEADED, TOKENS, pooled=True), bert(SHAPE, pooling="mean").apply(PARAMS, TOKENS)
    )


def test_dropout_falls_on_activations_and_only_when_asked():
    drops = [run(CLASSIFIER, HEADED, dropout=(jnp.float32(0.5), jax.random.key(i))) for i in (0, 0, 1)]
    np.testing.assert_array_equal(drops[0], drops[1])
    assert np.abs(drops[0] - drops[2]).max() > 0.01
    np.testing.assert_allclose(
        run(CLASSIFIER, HEADED, dropout=(jnp.float32(0.0), jax.random.key(0))), run(CLASSIFIER, HEADED), rtol=1e-6
    )


def test_a_prompt_sees_the_text_and_the_text_the_prompt_but_nobody_the_padding():
    rows = jnp.asarray(np.random.default_rng(1).normal(size=(3, 16)), jnp.float32)
    params = PARAMS | {"prompt": Rows(rows)}
    # With the prompt's rows in the table, prompt and text are one longer text.
    whole = PARAMS | {"embed": {"embedding": jnp.concatenate([PARAMS["embed"]["embedding"], rows])}}
    longer = jnp.concatenate([jnp.broadcast_to(jnp.arange(24, 27, dtype=jnp.int32), (2, 3)), TOKENS], axis=1)
    segments = jnp.asarray([[1] * 7, [1] * 5 + [0] * 2])
    wanted = run(params=whole, tokens=longer, segments=jnp.pad(segments, ((0, 0), (3, 0)), constant_values=1))[:, 3:]
    got = run(params=params, segments=segments)
    real = np.asarray(segments) > 0
    np.testing.assert_allclose(got[real], wanted[real], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(run(params=params), run(params=whole, tokens=longer)[:, 3:], rtol=1e-5, atol=1e-5)


def test_every_slot_is_read():
    slots, rng = MODEL.slots(), np.random.default_rng(2)
    L, D = slots["layers/attention_adapter"].shape
    prefix_L = [
        jnp.asarray(rng.normal(size=(L, 2, *slots["layers/attention/prefix"].shape[1:])), jnp.float32) for _ in "kv"
    ]
    nodes = {
        "layers/attention/prefix": KeysValues(*prefix_L),
        "layers/attention_adapter": Doubled(jnp.full((L,), 2.0)),
        "layers/feed_forward_adapter": Doubled(jnp.full((L,), 2.0)),
        "prompt": Rows(jnp.ones((2, D))),
    }
    assert nodes.keys() == slots.keys()
    for path, node in nodes.items():
        params = tree.unflatten(tree.flatten(PARAMS) | {path: node})
        assert np.abs(run(params=params) - run()).max() > 0.01, path


def test_a_leaf_that_no_slot_reads_is_an_error():
    with pytest.raises(ValueError, match=r"Nothing of the model reads \['pooler/bias'\]"):
        MODEL.apply(PARAMS | {"pooler": {"bias": jnp.zeros(16)}}, TOKENS)


def test_rows_longer_than_the_learned_positions_are_an_error():
    with pytest.raises(ValueError, match=r"13 tokens.*12 positions"):
        MODEL.apply(PARAMS, jnp.zeros((1, 13), jnp.int32))


@pytest.mark.parametrize("options", [{"remat": "full"}, {"unroll": 2}], ids=str)
def test_how_layers_are_run_does_not_change_the_gradient(options: Any):
    def gradient(model: Model) -> Any:
        return jax.jit(jax.grad(lambda p: jnp.mean(jnp.square(model.apply(p, TOKENS)[:, :, :5]))))(PARAMS)

    got = tree.flatten(gradient(bert(SHAPE, **options)))
    for path, wanted in tree.flatten(gradient(MODEL)).items():
        np.testing.assert_allclose(got[path], wanted, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize("bound", [{}, {"prompt": Rows(jnp.ones((2, 16)))}], ids=["alone", "prompted"])
def test_a_text_pooled_by_its_first_token_is_the_same_without_the_others_last_layer(bound: Any):
    segments = jnp.asarray([[1] * 7, [1] * 5 + [0] * 2])
    params = HEADED | {"pooler": {"kernel": jnp.eye(16), "bias": jnp.ones(16)}} | bound

    def gradient(unroll: int) -> Any:
        model = bert_classifier(SHAPE, classes=3, unroll=unroll)

        def total(params: Any, tokens: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(model.apply(params, tokens, segments=segments)))

        run = jax.value_and_grad(total)
        return jax.jit(run)(params, TOKENS), count_flops(run, params, TOKENS)

    (whole, all_flops), (first, flops) = gradient(1), gradient(SHAPE.depth)
    assert float(tree.norm(jax.tree.map(jnp.subtract, first, whole))) < 1e-6 * float(tree.norm(whole))
    assert flops < 0.85 * all_flops


def test_bfloat16_computes_coarsely():
    coarse, fine = run(bert(SHAPE, dtype="bfloat16")), run()
    assert coarse.dtype == np.float32
    assert 1e-4 < np.abs(coarse - fine).max() / np.abs(fine).max() < 5e-2


def test_axes_name_every_axis_of_every_parameter():
    axes = tree.flatten(CLASSIFIER.axes(), is_leaf=lambda x: isinstance(x, tuple))
    assert {p: len(names) for p, names in axes.items()} == {p: x.ndim for p, x in tree.flatten(HEADED).items()}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bert(SHAPE, pooling="max"), "max"),
        (lambda: bert(SHAPE, dtype="float64"), "dtype='float64'"),
        (lambda: bert_classifier(SHAPE, classes=1), "classes=1"),
        (lambda: BertShape(24, 16, 2, 3, 20, 12), "width=16 is not a multiple of heads=3"),
        (lambda: BertShape(24, 16, 2, 4, 20, 12, activation="swish"), "activation='swish'"),
    ],
)
def test_impossible_models_are_errors_when_they_are_made(make: Any, message: str):
    with pytest.raises(Exception, match=message):
        make()
