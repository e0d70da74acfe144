"""BERT and GPT-2 against transformers: stored tiny models, and random ones made here where torch is installed."""

import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adaptlab import tree
from adaptlab.models import BertShape, GPT2Shape, bert, bert_classifier, gpt2, pretrained, save_hf
from adaptlab.source import local
from tests.golden import families
from tests.laws.table import scattered

GOLDEN = families.HOME
BERT = BertShape(40, width=16, depth=2, heads=2, ffn_width=24, context=12)
GPT2 = GPT2Shape(40, width=16, depth=2, heads=2, ffn_width=24, context=12)


def ours(folder: Path, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What `families.outputs` returns, by adaptlab from the folder that transformers wrote."""
    names = {"token_type_ids": "types", "attention_mask": "segments"}
    inputs = {names[key]: jnp.asarray(x, jnp.int32) for key, x in arrays.items() if key in names}
    tokens = jnp.asarray(arrays["input_ids"], jnp.int32)

    def run(**options: Any) -> np.ndarray:
        read = pretrained(local(folder), **options)
        return np.asarray(jax.jit(read.model.apply)(read.load(), tokens, **inputs))

    if not inputs:
        return {"logits": run()}
    return {"logits": run(classes=families.CLASSES), "hidden": run(), "pooled": run(pooling="cls")}


def assert_same(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Equal within 1e-5, relative to the largest value; padding's own activations are nobody's."""
    real = wanted.get("attention_mask", np.ones(1)) > 0
    for key, x in got.items():
        assert x.shape == wanted[key].shape
        x, y = (x[real], wanted[key][real]) if key == "hidden" else (x, wanted[key])
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * np.abs(y).max(), err_msg=key)


@pytest.mark.parametrize("name", families.NAMES)
def test_a_tiny_model_computes_what_transformers_stored(name: str):
    golden = np.load(GOLDEN / name / "reference.npz")
    arrays = {key: golden[key] for key in golden.files if key in ("input_ids", "token_type_ids", "attention_mask")}
    got = ours(GOLDEN / name, arrays)
    assert_same(got, dict(golden))
    if "attention_mask" in arrays:
        assert arrays["attention_mask"].min() == 0  # padding is among the rows


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("name", families.NAMES)
def test_a_tiny_model_computes_what_transformers_computes_here_and_now(name: str, tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = families.build(name)
        arrays = families.inputs(name, rows=5, length=11)
        wanted = families.outputs(model, arrays) | arrays
        model.save_pretrained(tmp_path)
    assert_same(ours(tmp_path, arrays), wanted)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("name", families.NAMES)
def test_transformers_reads_what_we_save(name: str, tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    head = {} if "gpt2" in name else {"classes": families.CLASSES}
    read = pretrained(local(GOLDEN / name), **head)
    save_hf(tmp_path, shape_of(name), read.load(), context=12)
    auto = AutoModelForSequenceClassification if head else AutoModelForCausalLM
    model, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    golden = np.load(GOLDEN / name / "reference.npz")
    arrays = {key: golden[key] for key in golden.files if key in ("input_ids", "token_type_ids", "attention_mask")}
    got = families.outputs(model.eval(), arrays)
    assert_same(got, dict(golden))


def shape_of(name: str) -> Any:
    if name == "tiny_bert_relu":
        return BertShape(40, 16, 2, 2, 24, 12, norm_eps=1e-3, activation="relu")
    return {"tiny_bert": BERT, "tiny_gpt2": GPT2}[name]


@pytest.mark.parametrize("name", families.NAMES)
def test_what_we_save_has_the_names_and_values_of_what_was_read(name: str, tmp_path: Path):
    head = {} if "gpt2" in name else {"classes": families.CLASSES}
    read = pretrained(local(GOLDEN / name), **head)
    save_hf(tmp_path, shape_of(name), read.load(), context=12)
    got, wanted = (load_file(folder / "model.safetensors") for folder in (tmp_path, GOLDEN / name))
    assert got.keys() == wanted.keys()
    for key, x in wanted.items():
        np.testing.assert_array_equal(got[key], x, err_msg=key)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (tmp_path, GOLDEN / name)]
    same = configs[0].keys() - {"torch_dtype", "n_inner"}
    assert {k: configs[0][k] for k in same} == {k: configs[1][k] for k in same}


MODELS = {
    "encoder": (BERT, bert(BERT), {}),
    "pooled": (BERT, bert(BERT, pooling="cls"), {"pooling": "cls"}),
    "mean_classifier": (BERT, bert_classifier(BERT, classes=3, pooling="mean"), {"pooling": "mean", "classes": 3}),
    "decoder": (GPT2, gpt2(GPT2), {}),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_saved_folder_is_the_same_model(name: str, tmp_path: Path):
    shape, model, options = MODELS[name]
    params = jax.device_get(scattered(jax.jit(model.init)(jax.random.key(0)), 0))
    save_hf(tmp_path, shape, params, context=12)
    read = pretrained(local(tmp_path), **options)
    assert tree.digest(read.load()) == tree.digest(params)
    assert read.context == 12


def test_a_head_of_another_size_is_replaced_by_a_new_one_drawn_by_its_seed():
    folder = local(GOLDEN / "tiny_bert")
    own = pretrained(folder, classes=5).load()["classifier"]
    assert own["kernel"].shape == (16, 5)
    assert np.abs(own["bias"]).max() > 0.1  # the file's
    new = [pretrained(folder, classes=4, head_seed=seed).load()["classifier"] for seed in (0, 0, 1)]
    assert new[0]["kernel"].shape == (16, 4)
    assert tree.digest(new[0]) == tree.digest(new[1]) != tree.digest(new[2])


def test_buffers_of_old_versions_and_other_heads_are_left_out(tmp_path: Path):
    for name, extra in (
        ("tiny_gpt2", {"transformer.h.0.attn.bias": (1, 1, 12, 12), "transformer.h.1.attn.masked_bias": ()}),
        ("tiny_bert", {"bert.embeddings.position_ids": (1, 12), "cls.predictions.bias": (40,)}),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text((GOLDEN / name / "config.json").read_text())
        tensors = load_file(GOLDEN / name / "model.safetensors")
        extras = {key: np.zeros(shape, np.float32) for key, shape in extra.items()}
        save_file(tensors | extras, tmp_path / name / "model.safetensors")
        read, plain = (pretrained(local(parent / name)).load() for parent in (tmp_path, GOLDEN))
        assert tree.digest(read) == tree.digest(plain)


def test_a_missing_part_is_an_error_under_the_checkpoints_own_name(tmp_path: Path):
    tensors = load_file(GOLDEN / "tiny_gpt2" / "model.safetensors")
    del tensors["transformer.h.1.attn.c_attn.bias"]
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((GOLDEN / "tiny_gpt2" / "config.json").read_text())
    with pytest.raises(ValueError, match=r"- h\.1\.attn\.c_attn\.bias \(48,\): missing"):
        pretrained(local(tmp_path)).load()


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("tiny_bert", {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        ("tiny_bert", {"is_decoder": True}, "is_decoder"),
        ("tiny_bert", {"hidden_act": "silu"}, "hidden_act"),
        ("tiny_gpt2", {"scale_attn_weights": False}, "scale_attn_weights"),
        ("tiny_gpt2", {"activation_function": "silu"}, "activation_function"),
        ("tiny_gpt2", {"tie_word_embeddings": False}, "tie_word_embeddings"),
    ],
)
def test_what_our_models_do_not_have_is_an_error(name: str, change: dict[str, Any], message: str, tmp_path: Path):
    config = json.loads((GOLDEN / name / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        pretrained(local(tmp_path))


def test_a_decoder_has_neither_head_nor_pooling():
    with pytest.raises(ValueError, match="'gpt2' decoder"):
        pretrained(local(GOLDEN / "tiny_gpt2"), classes=2)


def test_added_leaves_and_another_context_are_not_saved(tmp_path: Path):
    params = jax.device_get(jax.jit(gpt2(GPT2).init)(jax.random.key(0)))
    with pytest.raises(ValueError, match=r"no place for \['prompt'\]"):
        save_hf(tmp_path, GPT2, params | {"prompt": np.zeros((2, 16), np.float32)}, context=12)
    with pytest.raises(ValueError, match="learned 12 positions"):
        save_hf(tmp_path, GPT2, params, context=24)
