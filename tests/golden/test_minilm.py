"""The real pretrained encoder computes what transformers computes on the same weights.

`minilm.npz` was made elsewhere by transformers 5.23.0 on torch 2.13.0 (CPU, float32).
"""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import config
from adaptlab.models import BertShape, bert

pytestmark = pytest.mark.real

GOLDEN = np.load(Path(__file__).parent / "minilm.npz")
SENTENCES = [
    "That is a happy person",
    "That is a happy dog",
    "That is a very happy person",
    "Today is a sunny day",
]


@functools.cache
def base() -> tuple[Any, Any, Any]:
    node = config.compose("base/minilm")["base"]
    pretrained = config.instantiate(node["model"])
    return pretrained, jax.tree.map(jnp.asarray, pretrained.load()), config.instantiate(node["tokenizer"])


def rows() -> tuple[jax.Array, jax.Array]:
    return tuple(jnp.asarray(GOLDEN[name], jnp.int32) for name in ("input_ids", "attention_mask"))


def test_the_tokenizer_gives_the_reference_ids_inside_its_frame():
    tokenizer = base()[2]
    (first,), (last,) = tokenizer.frame
    for ids, row, mask in zip(tokenizer.encode(SENTENCES), *rows(), strict=True):
        np.testing.assert_array_equal([first, *ids, last], row[mask > 0])


def test_sentence_embeddings_equal_the_reference():
    pretrained, params, _ = base()
    tokens, mask = rows()
    embeddings = np.asarray(jax.jit(pretrained.model.apply)(params, tokens, segments=mask))
    embeddings = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.testing.assert_allclose(embeddings, GOLDEN["embeddings"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(embeddings[0] @ embeddings[1:].T, [0.6946, 0.9429, 0.2569], rtol=0, atol=2e-3)


def test_the_first_tokens_last_activation_equals_the_reference():
    params = base()[1]
    encoder = bert(BertShape(30522, 384, 6, 12, 1536, 512))
    tokens, mask = rows()
    hidden = jax.jit(encoder.apply)(params, tokens, segments=mask)
    wanted = GOLDEN["last_hidden_cls"]
    np.testing.assert_allclose(hidden[:, 0], wanted, rtol=0, atol=1e-5 * np.abs(wanted).max())


def test_a_head_over_five_classes_is_new_and_the_encoder_what_it_was():
    node = config.compose("base/minilm")["base"]["model"]
    params = config.instantiate(node, classes=5).load()
    other = config.instantiate(node | {"head_seed": 1}, classes=5).load()
    assert params["classifier"]["kernel"].shape == (384, 5)
    assert np.any(params["classifier"]["kernel"] != other["classifier"]["kernel"])
    kernels = [tree["layers"]["attention"]["query"]["kernel"] for tree in (params, base()[1])]
    np.testing.assert_array_equal(*kernels)
