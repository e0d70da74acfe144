"""What models record on their way is what they compute with."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import tree
from adaptlab.adapt import prefix, prompt
from adaptlab.models import BertShape, GPT2Shape, LlamaShape, Model, bert, bert_classifier, gpt2, llama, mlp, pretrained
from adaptlab.source import local
from tests.laws.table import scattered

GOLDEN = Path(__file__).parents[1] / "golden"
B, T, V, D, L, H = 2, 6, 24, 16, 2, 4
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, V, (B, T), np.int32))
SEGMENTS = jnp.asarray([[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 1, 1]], jnp.int32)


class Family(NamedTuple):
    make: Any
    shape: Any


FAMILIES = {
    "llama": Family(llama, LlamaShape(V, D, L, H, kv_heads=2, head_width=6, ffn_width=20)),
    "gpt2": Family(gpt2, GPT2Shape(V, D, L, H, ffn_width=20, context=12)),
    "bert": Family(bert, BertShape(V, D, L, H, ffn_width=20, context=12)),
}


class Case(NamedTuple):
    model: Model
    params: Any
    found: dict[str, Any]
    output: Any
    family: Family


def drawn(model: Model) -> Any:
    """Random weights, without compiling the model's own start."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return scattered(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes), 0)


@functools.cache
def made(name: str) -> Case:
    family = FAMILIES[name]
    model = family.make(family.shape)
    params = drawn(model)
    both = jax.jit(lambda p: (look(model)(p, TOKENS, segments=SEGMENTS), model.apply(p, TOKENS, segments=SEGMENTS)))
    found, output = both(params)
    return Case(model, params, found, output, family)


every = pytest.mark.parametrize("name", FAMILIES)


def look(model: Model) -> Any:
    assert model.intermediates is not None
    return model.intermediates


@every
def test_hidden_states_are_those_of_models_with_fewer_layers(name: str):
    case = made(name)
    assert case.found["hidden"].shape == (L + 1, B, T, D)
    shallow = case.family.make(dataclasses.replace(case.family.shape, depth=1))
    flat = tree.flatten(case.params)
    first = tree.unflatten({p: x[:1] if p.startswith("layers/") else x for p, x in flat.items()})
    fewer = jax.jit(lambda p: look(shallow)(p, TOKENS, segments=SEGMENTS, kinds=("hidden",)))(first)["hidden"]
    np.testing.assert_allclose(fewer, case.found["hidden"][:2], rtol=1e-5, atol=1e-5)


@every
def test_the_last_hidden_state_is_what_the_output_is_made_of(name: str):
    case = made(name)
    last = np.asarray(case.found["hidden"][-1], np.float64)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), case.params)
    if isinstance(case.family.shape, BertShape):
        wanted = last
    else:
        less = last if isinstance(case.family.shape, LlamaShape) else last - last.mean(-1, keepdims=True)
        normal = less / np.sqrt(np.mean(less**2, -1, keepdims=True) + case.family.shape.norm_eps)
        normal = normal * params["norm"]["scale"] + params["norm"].get("bias", 0.0)
        wanted = normal @ params["embed"]["embedding"].T
    np.testing.assert_allclose(case.output, wanted, rtol=1e-4, atol=1e-4)


@every
def test_attention_is_a_distribution_over_what_is_seen(name: str):
    case = made(name)
    p = np.asarray(case.found["attention"])
    assert p.shape == (L, B, H, T, T)
    np.testing.assert_allclose(p.sum(-1), 1, rtol=1e-5)
    seen = np.asarray(SEGMENTS)[:, :, None] == np.asarray(SEGMENTS)[:, None, :]
    if not isinstance(case.family.shape, BertShape):
        seen = seen & np.tril(np.ones((T, T), bool))
    np.testing.assert_array_equal(p > 0, np.broadcast_to(seen[None, :, None], p.shape))


def test_attention_of_the_first_layer_is_the_formulas():
    _, params, found, _, family = made("gpt2")
    flat = {path: np.asarray(x, np.float64) for path, x in tree.flatten(params).items()}
    x = np.asarray(found["hidden"][0], np.float64)
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt(np.mean(x**2, -1, keepdims=True) + family.shape.norm_eps)
    x = x * flat["layers/attention_norm/scale"][0] + flat["layers/attention_norm/bias"][0]
    q, k = (
        (x @ flat[f"layers/attention/{name}/kernel"][0] + flat[f"layers/attention/{name}/bias"][0]).reshape(B, T, H, -1)
        for name in ("query", "key")
    )
    scores = np.einsum("bthk,bshk->bhts", q, k) / np.sqrt(D // H)
    segments = np.asarray(SEGMENTS)
    seen = np.tril(np.ones((T, T), bool)) & (segments[:, :, None] == segments[:, None, :])
    scores = np.where(seen[:, None], scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    np.testing.assert_allclose(found["attention"][0], weights / weights.sum(-1, keepdims=True), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["tiny_bert", "tiny_gpt2"])
def test_a_tiny_model_records_what_transformers_does(name: str):
    """`tiny_intermediates.npz` was made with transformers 5.23.0's `output_hidden_states` and `output_attentions`.

    Their last state of a GPT-2 is normalised, which ours is not.
    """
    given, wanted = np.load(GOLDEN / name / "reference.npz"), np.load(GOLDEN / "tiny_intermediates.npz")
    names = {"token_type_ids": "types", "attention_mask": "segments"}
    inputs = {names[key]: jnp.asarray(given[key], jnp.int32) for key in names if key in given.files}
    read = pretrained(local(GOLDEN / name))
    found = jax.jit(look(read.model))(read.load(), jnp.asarray(given["input_ids"], jnp.int32), **inputs)
    real = given["attention_mask"] > 0 if "attention_mask" in given.files else np.ones(given["input_ids"].shape, bool)
    states = slice(None) if name == "tiny_bert" else slice(-1)
    for got, theirs in (
        (np.asarray(found["hidden"])[states][:, real], wanted[f"{name}_hidden"][states][:, real]),
        (np.asarray(found["attention"]).swapaxes(2, 3)[:, real], wanted[f"{name}_attention"].swapaxes(2, 3)[:, real]),
    ):
        np.testing.assert_allclose(got, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "options", [{"remat": "full", "unroll": 1}, pytest.param({"dtype": "bfloat16"}, marks=pytest.mark.slow)], ids=str
)
def test_how_layers_are_run_does_not_change_what_is_recorded(options: Any):
    case = made("llama")
    model, plain = llama(case.family.shape, **options), case.found
    other = jax.jit(lambda p: look(model)(p, TOKENS, segments=SEGMENTS))(case.params)
    tolerance = 0.05 if "dtype" in options else 1e-5
    assert other["hidden"].dtype == (jnp.bfloat16 if "dtype" in options else jnp.float32)
    assert other["attention"].dtype == jnp.float32
    for kind in ("hidden", "attention"):
        size = np.abs(np.asarray(plain[kind])).max()
        np.testing.assert_allclose(np.asarray(other[kind], np.float32), plain[kind], atol=tolerance * size)


def test_only_what_is_asked_for_is_computed():
    family = FAMILIES["llama"]
    model = llama(family.shape, unroll=1)
    params = jax.eval_shape(model.init, jax.random.key(0))
    softmaxes = [
        str(jax.make_jaxpr(f)(params, TOKENS)).count("exp ")
        for f in (model.apply, lambda p, t: look(model)(p, t, kinds=("hidden",)), look(model))
    ]
    assert softmaxes[0] == softmaxes[1] < softmaxes[2]
    assert list(jax.eval_shape(lambda p: look(model)(p, TOKENS, kinds=("attention",)), params)) == ["attention"]


def test_rows_of_a_prompt_are_left_out_and_its_keys_stand_in_front():
    model = gpt2(FAMILIES["gpt2"].shape)
    params = jax.eval_shape(model.init, jax.random.key(0))
    for make, before in ((prompt, 3), (prefix, 3)):
        adaptation = make(3, slots=model.slots())
        delta = jax.eval_shape(adaptation.init, jax.random.key(1), params)
        shapes = jax.eval_shape(lambda p, d, a=adaptation: look(model)(a.bind(p, d), TOKENS), params, delta)
        assert shapes["hidden"].shape == (L + 1, B, T, D)
        assert shapes["attention"].shape == (L, B, H, T, before + T)


def test_a_classifier_records_what_its_encoder_does():
    case = made("bert")
    head = bert_classifier(case.family.shape, classes=3)
    params = drawn(head) | case.params
    found = jax.jit(lambda p: look(head)(p, TOKENS, segments=SEGMENTS, kinds=("hidden",)))(params)
    np.testing.assert_allclose(found["hidden"], case.found["hidden"], rtol=1e-5, atol=1e-5)


def test_what_is_not_recorded_is_an_error():
    with pytest.raises(ValueError, match=r"kinds=\['queries'\] are not recorded.*hidden.*attention"):
        look(gpt2(FAMILIES["gpt2"].shape))({}, TOKENS, kinds=("queries",))
    assert mlp([3, 2]).intermediates is None
