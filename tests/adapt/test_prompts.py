from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf, tree
from adaptlab.adapt import materialize, p_tuning, prefix, prompt
from tests.laws.table import MODELS, VOCABULARY, scattered

ROW = MODELS["llama_untied_gqa"]
SLOTS = ROW.model.slots()
BASE = scattered(ROW.model.init(jax.random.key(0)), 0)
TABLE = np.asarray(BASE["embed"]["embedding"])
KEY = jax.random.key(0)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (2, 6)))


def rows(**options: Any) -> np.ndarray:
    return np.asarray(prompt(**options, slots=SLOTS).init(KEY, BASE)["prompt"]["embeddings"])


def test_a_prompt_of_tokens_is_those_tokens_in_front_of_every_sequence():
    ids = [5, 2, 9]
    adaptation = prompt(3, init="text", ids=ids, slots=SLOTS)
    bound = adaptation.bind(BASE, adaptation.init(KEY, BASE))
    longer = jnp.concatenate([jnp.broadcast_to(jnp.asarray(ids), (2, 3)), TOKENS], axis=1)
    wanted = ROW.model.apply(BASE, longer)[:, 3:]
    np.testing.assert_allclose(ROW.model.apply(bound, TOKENS), wanted, rtol=0, atol=1e-5)


def test_a_text_is_repeated_or_cut_to_length():
    np.testing.assert_array_equal(rows(length=5, init="text", ids=[3, 7]), TABLE[[3, 7, 3, 7, 3]])
    np.testing.assert_array_equal(rows(length=2, init="text", ids=[3, 7, 1]), TABLE[[3, 7]])


@pytest.mark.parametrize(
    ("options", "allowed"),
    [({}, range(VOCABULARY)), ({"among": 4}, range(4)), ({"ids": [30, 11]}, [30, 11])],
    ids=str,
)
def test_a_vocabulary_prompt_starts_from_embeddings_of_the_tokens_on_offer(options: Any, allowed: Any):
    drawn = rows(length=40, init="vocabulary", **options)
    found = {int(np.flatnonzero((row == TABLE).all(1))[0]) for row in drawn}
    assert found <= set(allowed)
    assert len(found) > min(len(allowed), 10) / 2


def test_a_random_prompt_has_the_deviation_of_the_embeddings():
    drawn = rows(length=500, init="random")
    np.testing.assert_allclose(drawn.std(), TABLE.std(), rtol=0.05)
    assert abs(drawn.mean()) < 0.05 * TABLE.std()


def test_what_stands_in_front_takes_attention_from_the_start():
    plain = ROW.model.apply(BASE, TOKENS)
    for adaptation in (prefix(3, slots=SLOTS), prefix(3, deviation=0.0, slots=SLOTS), prompt(3, slots=SLOTS)):
        adapted = ROW.model.apply(adaptation.bind(BASE, adaptation.init(KEY, BASE)), TOKENS)
        assert np.abs(adapted - plain).max() > 0.01


def test_the_attention_of_every_layer_is_over_the_prefix_and_the_sequence():
    adaptation = prefix(3, slots=SLOTS)
    delta = scattered(adaptation.init(KEY, BASE), 1)
    logits = np.asarray(ROW.model.apply(adaptation.bind(BASE, delta), TOKENS))
    for layer in range(2):
        for name in ("keys", "values"):
            moved = tree.map_with_path(
                lambda path, x, n=name, i=layer: x.at[i].add(1.0) if path.endswith(n) else x, delta
            )
            changed = np.abs(np.asarray(ROW.model.apply(adaptation.bind(BASE, moved), TOKENS)) - logits)
            assert np.all(changed.max(-1) > 1e-4), (layer, name)


def test_an_encoder_makes_every_row_of_the_prompt_and_the_lstm_mixes_them():
    encoders: Any = {"mlp": False, "lstm": True}
    for encoder, mixes in encoders.items():
        adaptation = p_tuning(4, width=5, encoder=encoder, layers=2, slots=SLOTS)
        delta = scattered(adaptation.init(KEY, BASE), 1)

        def made(table: jax.Array, delta: Any = delta, adaptation: Any = adaptation) -> jax.Array:
            return adaptation.bind(BASE, {"prompt": delta["prompt"] | {"table": table}})["prompt"].rows()

        jacobian = np.abs(jax.jacobian(made)(delta["prompt"]["table"])).sum((1, 3))
        assert np.all(np.diag(jacobian) > 0)
        assert np.all((jacobian[~np.eye(4, dtype=bool)] > 0) == mixes), encoder


def test_what_stands_in_front_cannot_be_merged():
    for adaptation in (prefix(2, slots=SLOTS), prompt(2, slots=SLOTS), p_tuning(2, slots=SLOTS)):
        with pytest.raises(ValueError, match=r"adds computation to the model .* cannot be merged"):
            materialize(adaptation.bind(BASE, adaptation.init(KEY, BASE)))


def test_prompts_read_an_embedding_that_is_adapted_itself():
    table = leaf.Scaled(BASE["embed"]["embedding"], None, jnp.full(16, 2.0))
    drawn = prompt(1, init="text", ids=[3], slots=SLOTS).init(KEY, BASE | {"embed": {"embedding": table}})
    np.testing.assert_allclose(drawn["prompt"]["embeddings"], 2 * TABLE[[3]], rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (prompt, {"length": 0}, "length=0 must be at least 1"),
        (prompt, {"init": "loud"}, r"init='loud' is not one of \['random', 'vocabulary', 'text'\]"),
        (prompt, {"init": "text"}, "'text' needs ids"),
        (prompt, {"init": "random", "ids": [1]}, "'random' takes neither"),
        (prompt, {"init": "text", "ids": [1], "among": 2}, "'vocabulary' takes ids or among"),
        (prompt, {"init": "text", "ids": [3, 32]}, r"tokens \[32\], and 'embed/embedding' has the rows 0 to 31"),
        (prompt, {"among": 33}, r"tokens \[32\], and 'embed/embedding' has the rows 0 to 31"),
        (prompt, {"embedding": "wte"}, "'wte' matches nothing"),
        (prompt, {"embedding": "(embed|norm)/.*"}, "must match one path, and matches"),
        (prompt, {"slots": {}}, "prompt adds computation at slots of kind 'prompt' and the model has none"),
        (prefix, {"length": 0}, "length=0 and reparametrise=None must each be at least 1"),
        (prefix, {"reparametrise": 0}, "length=16 and reparametrise=0 must each be at least 1"),
        (prefix, {"slots": {}}, "prefix adds computation at slots of kind 'prefix' and the model has none"),
        (p_tuning, {"layers": 0}, "length=16, width=None and layers=0 must each be at least 1"),
        (p_tuning, {"encoder": "gru"}, r"encoder='gru' is not one of \['mlp', 'lstm'\]"),
    ],
    ids=lambda x: getattr(x, "__name__", str(x)),
)
def test_what_cannot_stand_in_front_is_an_error(make: Any, options: dict[str, Any], message: str):
    make = getattr(make, "__wrapped__", make)  # wrong values, on purpose
    with pytest.raises(ValueError, match=message):
        make(**({"slots": SLOTS} | options)).init(KEY, BASE)
