from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab.data import Batch, empty_batch
from adaptlab.measure import Measurement, held_out_text, make_probe
from adaptlab.models import Model

V = 6
TABLE = jnp.asarray(np.random.default_rng(0).normal(size=(V, V)), jnp.float32)
BIGRAM = Model(init=lambda key: TABLE, apply=lambda params, tokens, **_: params[tokens], axes=lambda: ())
TOKEN_BYTES = np.array([0, 1, 2, 3, 4, 5], np.int32)
MEASUREMENT = held_out_text(BIGRAM, TOKEN_BYTES)


def rows(seed: int, count: int = 4, length: int = 5) -> Batch:
    rng = np.random.default_rng(seed)
    tokens, targets = rng.integers(0, V, (2, count, length), np.int32)
    ones = np.ones((count, length), np.int32)
    return Batch(tokens, targets, ones, ones * 0, (rng.random((count, length)) < 0.7).astype(np.float32))


def by_hand(*batches: Batch) -> dict[str, float]:
    table = np.asarray(TABLE, np.float64)
    log_p = table - np.log(np.exp(table).sum(-1, keepdims=True))
    pairs = [
        (int(token), int(target))
        for batch in batches
        for token, target, weight in zip(*map(np.ravel, (batch.tokens, batch.targets, batch.weights)), strict=True)
        if weight
    ]
    nats = -sum(log_p[token, target] for token, target in pairs)
    return {
        "loss": nats / len(pairs),
        "loss_sum": nats,
        "tokens": len(pairs),
        "perplexity": np.exp(nats / len(pairs)),
        "bits_per_byte": nats / np.log(2) / sum(TOKEN_BYTES[target] for _, target in pairs),
        "accuracy": np.mean([log_p[token].argmax() == target for token, target in pairs]),
    }


def measured(*batches: Batch) -> dict[str, float]:
    probe = make_probe(MEASUREMENT, {"d": [jax.device_put(batch) for batch in batches]})
    return {name.removeprefix("d/"): value for name, value in probe(TABLE).items()}


def assert_equal(got: dict[str, float], wanted: dict[str, float]) -> None:
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert got[name] == pytest.approx(value, rel=1e-6), name


def test_every_metric_is_its_definition():
    assert_equal(measured(rows(0), rows(1)), by_hand(rows(0), rows(1)))


def test_batch_sizes_do_not_matter():
    whole = rows(0, count=8)
    halves = [Batch(*(part[i : i + 2] for part in whole)) for i in range(0, 8, 2)]
    assert_equal(measured(*halves), measured(whole))


def test_rows_of_padding_weigh_nothing():
    padding = empty_batch(4, 5)
    assert measured(rows(0), padding) == measured(rows(0))


def test_domains_are_measured_apart():
    domains = {"a": [jax.device_put(rows(0))], "b": [jax.device_put(rows(1))]}
    both = make_probe(MEASUREMENT, domains)(TABLE)
    for name, seed in (("a", 0), ("b", 1)):
        got = {key.removeprefix(f"{name}/"): value for key, value in both.items() if key.startswith(f"{name}/")}
        assert got == measured(rows(seed))


def test_text_of_tokens_without_bytes_has_no_bits_per_byte():
    batch = rows(0)._replace(targets=np.zeros((4, 5), np.int32))
    assert np.isnan(measured(batch)["bits_per_byte"])


def test_a_hopeless_model_has_a_large_perplexity_and_no_overflow():
    probe = make_probe(MEASUREMENT, {"d": [jax.device_put(rows(0))]})
    metrics = probe(TABLE * 1e5)
    assert metrics["d/loss"] > 1000
    assert np.isfinite(metrics["d/perplexity"])


def test_batches_add_up_in_float64():
    # In float32, 2^24 + 1 is 2^24.
    adding = Measurement(
        lambda: jnp.zeros(()), lambda state, _, batch: state + batch, lambda state: {"sum": float(state)}
    )
    parts = [jnp.asarray(x, jnp.float32) for x in (2.0**24, 1.0, 1.0)]
    assert make_probe(adding, {"d": parts})(0.0) == {"d/sum": 2.0**24 + 2}


def test_finishing_gets_float64():
    seen: list[Any] = []
    spy = MEASUREMENT._replace(finish=lambda state: seen.extend(state) or {})
    make_probe(spy, {"d": [jax.device_put(rows(0))]})(TABLE)
    assert {x.dtype for x in seen} == {np.dtype("float64")}


def test_a_model_is_bound_inside_the_one_program_of_all_domains():
    traces: list[str] = []

    def bind(table: jax.Array, shift: jax.Array) -> jax.Array:
        traces.append("bind")
        return table + shift

    domains = {name: [jax.device_put(rows(seed)) for seed in range(3)] for name in "ab"}
    probe = make_probe(MEASUREMENT, domains, bind)
    first, second = probe(TABLE, jnp.zeros((V, V))), probe(TABLE, TABLE)
    assert traces == ["bind"]
    assert first["a/loss"] != second["a/loss"]
    assert first == {f"{n}/{k}": v for n in "ab" for k, v in measured(*map(rows, range(3))).items()}
