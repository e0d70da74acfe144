from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab.data import LabelledBatch
from adaptlab.measure import Sentences, by_kind, held_out_labels, make_probe, sentence_embeddings, sentence_similarity
from adaptlab.models import BertShape, Model, bert_classifier
from adaptlab.models.losses import classification
from adaptlab.stats import merge

TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(9, 3)), jnp.float32)
# The logits of a row are those of its first token.
FIRST = Model(init=lambda key: TABLE, apply=lambda params, tokens, **_: params[tokens[:, 0]], axes=lambda: ())
SHAPE = BertShape(20, 8, 1, 2, 12, 6)
ENCODER = bert_classifier(SHAPE, classes=3, pooling="mean")
PARAMS = jax.tree.map(lambda x: 10.0 * x, ENCODER.init(jax.random.key(0)))


def batch(seed: int, rows: int = 6) -> LabelledBatch:
    rng = np.random.default_rng(seed)
    tokens, ones = rng.integers(0, 9, (rows, 4), np.int32), np.ones((rows, 4), np.int32)
    weights = (rng.random(rows) < 0.7).astype(np.float32)
    return jax.device_put(LabelledBatch(tokens, rng.integers(0, 3, rows, np.int32), ones, weights))


def on_host(batches: Any) -> Any:
    return jax.tree.map(np.asarray, batches)


def by_hand(*batches: LabelledBatch) -> dict[str, float]:
    logits = np.asarray(TABLE, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    rows = [(t[0], y) for b in on_host(batches) for t, y, w in zip(b.tokens, b.targets, b.weights, strict=True) if w]
    nats = -sum(log_p[t, y] for t, y in rows)
    pairs = [(y, int(log_p[t].argmax())) for t, y in rows]
    f1 = []
    for c in {c for pair in pairs for c in pair}:
        tp, given, true = (sum(f) for f in zip(*((y == g == c, g == c, y == c) for y, g in pairs), strict=True))
        f1.append(2 * tp / (given + true))
    return {
        "loss": nats / len(rows),
        "loss_sum": nats,
        "texts": len(rows),
        "accuracy": np.mean([y == g for y, g in pairs]),
        "macro_f1": np.mean(f1),
    }


def test_labels_are_measured_as_by_hand_over_any_split_into_batches():
    probe = make_probe(held_out_labels(FIRST, 3), {"a": [batch(0), batch(1)], "b": [batch(2, 5)]})
    got = probe(TABLE)
    wanted = {"a": by_hand(batch(0), batch(1)), "b": by_hand(batch(2, 5))}
    for domain, metrics in wanted.items():
        for name, value in metrics.items():
            assert got[f"{domain}/{name}"] == pytest.approx(value, rel=1e-6), name


def test_a_class_nobody_has_or_is_given_is_no_part_of_macro_f1():
    only = batch(0)._replace(tokens=jnp.full((6, 4), 2, jnp.int32))
    right = int(TABLE[2].argmax())
    only = only._replace(targets=jnp.full(6, right, jnp.int32))
    assert make_probe(held_out_labels(FIRST, 3), {"a": [only]})(TABLE)["a/macro_f1"] == 1.0


def test_the_training_loss_is_the_measured_one_plus_smoothing():
    plain = [classification(FIRST)(TABLE, batch(seed), jax.random.key(0)) for seed in (0, 1)]
    assert float(merge(*plain).value) == pytest.approx(by_hand(batch(0), batch(1))["loss"], rel=1e-6)
    smooth = classification(FIRST, label_smoothing=1.0)(TABLE, batch(0), jax.random.key(0))
    log_p = np.asarray(jax.nn.log_softmax(TABLE), np.float64)
    uniform = sum(-log_p[t[0]].mean() for t, w in zip(*on_host((batch(0).tokens, batch(0).weights)), strict=True) if w)
    assert float(smooth.sum) == pytest.approx(uniform, rel=1e-6)


def test_dropout_and_label_noise_are_drawn_anew_from_each_key():
    for option in ({"dropout": 0.3}, {"label_noise": 0.9}):
        loss = classification(ENCODER, **option)
        first, again, other = (float(loss(PARAMS, batch(0), jax.random.key(i)).sum) for i in (0, 0, 2))
        assert first == again != other


def sentences(seed: int, params: Any = PARAMS) -> Sentences:
    b = batch(seed)
    return Sentences(b.tokens, b.segments, b.weights, sentence_embeddings(ENCODER, params, b.tokens, b.segments))


def test_in_the_base_nothing_has_moved():
    got = make_probe(sentence_similarity(ENCODER), {"a": [sentences(0), sentences(1)]})(PARAMS)
    # Of 1, single precision resolves 1e-7, and the error is the root of what cancels.
    assert got["a/similarity_error"] == pytest.approx(0, abs=1e-3)
    assert got["a/similarity_correlation"] == pytest.approx(1, abs=1e-5)
    assert got["a/embedding_cosine"] == pytest.approx(1, abs=1e-6)


def test_similarity_equals_its_definition_over_the_pairs_of_each_batch():
    other = jax.tree.map(lambda x: 10.0 * x, ENCODER.init(jax.random.key(5)))
    batches = [sentences(0), sentences(1)]
    got = make_probe(sentence_similarity(ENCODER), {"a": batches})(other)
    now, then, cosines = [], [], []
    for b in batches:
        real = np.asarray(b.weights) > 0
        new = np.asarray(sentence_embeddings(ENCODER, other, b.tokens, b.segments), np.float64)[real]
        old = np.asarray(b.reference, np.float64)[real]
        above = np.triu_indices(len(new), 1)
        now, then = now + list((new @ new.T)[above]), then + list((old @ old.T)[above])
        cosines += list((new * old).sum(-1))
    assert got["a/pairs"] == len(now)
    assert got["a/similarity_error"] == pytest.approx(np.sqrt(np.mean(np.subtract(now, then) ** 2)), rel=1e-4)
    assert got["a/similarity_correlation"] == pytest.approx(np.corrcoef(now, then)[0, 1], abs=1e-3)
    assert got["a/embedding_cosine"] == pytest.approx(np.mean(cosines), abs=1e-5)


def test_each_kind_of_batch_goes_to_its_own_measurement():
    kinds = by_kind({LabelledBatch: held_out_labels(ENCODER, 3), Sentences: sentence_similarity(ENCODER)})
    got = make_probe(kinds, {"task": [batch(0)], "upstream": [sentences(1)]})(PARAMS)
    assert {name for name in got if name.startswith("task/")} == {
        f"task/{m}" for m in ("loss", "loss_sum", "texts", "accuracy", "macro_f1")
    }
    assert "upstream/similarity_error" in got
    assert "upstream/loss" not in got

    class Other(NamedTuple):
        tokens: Any

    with pytest.raises(TypeError, match=r"Batches of Other.*LabelledBatch.*Sentences"):
        make_probe(kinds, {"x": [Other(np.ones(2))]})(PARAMS)
