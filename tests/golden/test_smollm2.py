"""The real pretrained base computes what transformers computes on the same weights."""

from pathlib import Path

import numpy as np
import pytest

from tests.golden.smollm2 import (
    COLUMNS,
    LOGITS,
    LONG,
    LOSS,
    SHORT,
    base,
    log_probabilities,
    our_logits,
    texts,
    their_logits,
)

pytestmark = pytest.mark.real

GOLDEN_SHORT, GOLDEN_LONG = np.load(SHORT), np.load(LONG)


@pytest.mark.parametrize("i", range(3))
def test_short_texts_equal_values_made_elsewhere(i: int):
    golden = {key: GOLDEN_SHORT[f"{i}/{key}"] for key in ("ids", "argmax", "log_probabilities", "last_logits", "loss")}
    logits = our_logits(golden["ids"])
    np.testing.assert_array_equal(logits.argmax(-1), golden["argmax"])
    np.testing.assert_allclose(logits[-1, :64], golden["last_logits"], rtol=0, atol=LOGITS)
    ours = log_probabilities(logits, golden["ids"])
    np.testing.assert_allclose(ours, golden["log_probabilities"], rtol=0, atol=LOGITS)
    np.testing.assert_allclose(-ours.mean(), golden["loss"], rtol=0, atol=LOSS)


@pytest.mark.parametrize("name", ["english", "german", "python"])
def test_long_texts_equal_the_stored_values_of_transformers(name: str):
    ids = GOLDEN_LONG[f"{name}/ids"]
    logits = our_logits(ids)
    np.testing.assert_array_equal(logits.argmax(-1), GOLDEN_LONG[f"{name}/argmax"])
    np.testing.assert_allclose(logits[:, COLUMNS], GOLDEN_LONG[f"{name}/some_logits"], rtol=0, atol=LOGITS)
    ours, theirs = log_probabilities(logits, ids), GOLDEN_LONG[f"{name}/log_probabilities"]
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=LOGITS)
    np.testing.assert_allclose(ours.mean(), theirs.mean(), rtol=0, atol=LOSS)
    if name == "german":
        np.testing.assert_allclose(logits[-1], GOLDEN_LONG["german/last_logits"], rtol=0, atol=LOGITS)


def test_the_stored_ids_are_the_texts():
    tokenizer = base()[2]
    for name, text in texts().items():
        np.testing.assert_array_equal(tokenizer.encode([text])[0], GOLDEN_LONG[f"{name}/ids"])
        assert tokenizer.decode(GOLDEN_LONG[f"{name}/ids"]) == text


@pytest.mark.reference
def test_every_logit_equals_that_of_transformers_here_and_now(tmp_path: Path):
    all_ids = base()[2].encode(list(texts().values()))
    for name, ids, theirs in zip(texts(), all_ids, their_logits(all_ids, tmp_path), strict=True):
        ours = our_logits(ids)
        assert ours.shape == theirs.shape == (len(ids), 49152)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=LOGITS, err_msg=name)
        np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1), err_msg=name)
        losses = [-log_probabilities(logits, ids).mean() for logits in (ours, theirs)]
        np.testing.assert_allclose(*losses, rtol=0, atol=LOSS, err_msg=name)
