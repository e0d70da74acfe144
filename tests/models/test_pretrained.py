import json
from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adaptlab import tree
from adaptlab.models import LlamaShape, llama, pretrained, save_hf
from adaptlab.source import local
from tests.laws.table import scattered

# Rows of 32, the block of GGUF's quantised types.
SHAPE = LlamaShape(
    40, width=32, depth=2, heads=4, kv_heads=2, head_width=8, ffn_width=64, rope_base=5e4, norm_eps=1e-6, tied=False
)
TIED = LlamaShape(40, width=32, depth=2, heads=4, kv_heads=4, head_width=8, ffn_width=64)
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 6), np.int32))


def weights(shape: LlamaShape) -> Any:
    params = scattered(jax.jit(llama(shape).init)(jax.random.key(0)), 0)
    return jax.tree.map(np.asarray, params)


def same(got: Any, wanted: Any) -> bool:
    return tree.digest(got) == tree.digest(wanted)


@pytest.mark.parametrize("shape", [SHAPE, TIED], ids=["untied", "tied"])
def test_a_saved_folder_is_the_same_model(shape: LlamaShape, tmp_path: Path):
    params = weights(shape)
    save_hf(tmp_path / "m", shape, params, context=77)
    read = pretrained(local(tmp_path / "m"), name="mine")
    assert (read.name, read.context) == ("mine", 77)
    assert same(read.load(), params)
    logits = [jax.jit(m.apply)(params, TOKENS) for m in (read.model, llama(shape))]
    np.testing.assert_array_equal(*logits)


def test_the_fingerprint_is_of_the_weights(tmp_path: Path):
    params = weights(TIED)
    for name in "ab":
        save_hf(tmp_path / name, TIED, params, context=8)
    (tmp_path / "b" / "README.md").write_text("other words")
    save_hf(tmp_path / "c", TIED, scattered(params, 1), context=8)
    a, b, c = (pretrained(local(tmp_path / name)).fingerprint for name in "abc")
    assert a == b != c


def test_weights_in_several_files_are_one_model(tmp_path: Path):
    params = weights(SHAPE)
    save_hf(tmp_path, SHAPE, params, context=8)
    tensors = list(load_file(tmp_path / "model.safetensors").items())
    (tmp_path / "model.safetensors").unlink()
    save_file(dict(tensors[:5]), tmp_path / "model-1.safetensors")
    save_file(dict(tensors[5:]), tmp_path / "model-2.safetensors")
    assert same(pretrained(local(tmp_path)).load(), params)


def test_a_copy_of_a_tied_head_is_ignored(tmp_path: Path):
    params = weights(TIED)
    save_hf(tmp_path, TIED, params, context=8)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}, tmp_path / "model.safetensors")
    assert same(pretrained(local(tmp_path)).load(), params)


def test_a_checkpoint_of_other_tensors_is_an_error_that_lists_both_sides(tmp_path: Path):
    save_hf(tmp_path, SHAPE, weights(SHAPE), context=8)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.norm.bias"] = tensors.pop("model.norm.weight")
    tensors["lm_head.weight"] = tensors["lm_head.weight"][:-1].copy()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit") as error:
        pretrained(local(tmp_path)).load()
    for line in (
        "- model.norm.weight (32,): missing",
        "+ model.norm.bias (32,): not part of this model",
        "! lm_head.weight: expected (40, 32), found (39, 32)",
    ):
        assert line in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "'mamba' model; adaptlab reads 'bert', 'gpt2', 'llama'"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "rope_scaling"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rope_scaling"),
        ({"attention_bias": True}, "attention_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_what_our_llama_does_not_have_is_an_error(change: dict[str, Any], message: str, tmp_path: Path):
    save_hf(tmp_path, TIED, weights(TIED), context=8)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=message):
        pretrained(local(tmp_path))


def test_a_folder_without_a_model_and_pickled_weights_are_errors(tmp_path: Path):
    with pytest.raises(ValueError, match=r"neither a \.gguf file nor a folder"):
        pretrained(local(tmp_path))
    save_hf(tmp_path, TIED, weights(TIED), context=8)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="pickled weights are never read"):
        pretrained(local(tmp_path))


def interleaved(rows: np.ndarray, heads: int) -> np.ndarray:
    """The order of rotary rows in GGUF files: 0, K/2, 1, K/2+1, … within each head."""
    per_head = rows.reshape(heads, -1, rows.shape[-1])
    half = per_head.shape[1] // 2
    order = [i + j * half for i in range(half) for j in (0, 1)]
    return per_head[:, order].reshape(rows.shape)


GGUF_NAMES = {
    "attention_norm/scale": "attn_norm",
    "feed_forward_norm/scale": "ffn_norm",
    "attention/query/kernel": "attn_q",
    "attention/key/kernel": "attn_k",
    "attention/value/kernel": "attn_v",
    "attention/out/kernel": "attn_output",
    "feed_forward/gate/kernel": "ffn_gate",
    "feed_forward/up/kernel": "ffn_up",
    "feed_forward/down/kernel": "ffn_down",
}
OUTER_NAMES = {"embed/embedding": "token_embd", "norm/scale": "output_norm", "head/kernel": "output"}


def gguf_tensors(shape: LlamaShape, params: Any) -> dict[str, np.ndarray]:
    flat, tensors = tree.flatten(params), {}
    for path, x in flat.items():
        if path in OUTER_NAMES:
            tensors[f"{OUTER_NAMES[path]}.weight"] = x.T if path.startswith("head") else x
            continue
        name = path.removeprefix("layers/")
        for layer, one in enumerate(x):
            rows = one.T if one.ndim == 2 else one
            heads = {"attention/query/kernel": shape.heads, "attention/key/kernel": shape.kv_heads}.get(name)
            rows = interleaved(rows, heads) if heads else rows
            tensors[f"blk.{layer}.{GGUF_NAMES[name]}.weight"] = rows
    return {name: np.ascontiguousarray(x) for name, x in tensors.items()}


def write_gguf(path: Path, shape: LlamaShape, tensors: dict[str, np.ndarray], kind: Any, architecture: str) -> None:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_context_length(64)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.depth)
    writer.add_feed_forward_length(shape.ffn_width)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_rope_freq_base(shape.rope_base)
    for name, x in tensors.items():
        if x.ndim == 1 or kind is gguf.GGMLQuantizationType.F32:
            writer.add_tensor(name, x)
        else:
            writer.add_tensor(name, gguf.quantize(x, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read_gguf(path: Path, shape: LlamaShape, kind: Any, architecture: str = "llama") -> tuple[Any, Any]:
    """Write a model as GGUF and open it; the second is what its tensors must be."""
    params = weights(shape)
    tensors = gguf_tensors(shape, params)
    write_gguf(path, shape, tensors, kind, architecture)
    if kind is not gguf.GGMLQuantizationType.F32:
        params = tree.map_with_path(lambda p, x: x if p.endswith("scale") else through(x, p, kind), params)
    return pretrained(local(path)), params


def through(x: np.ndarray, path: str, kind: Any) -> np.ndarray:
    """An array after quantisation row by row, rows being the checkpoint's: our columns, or the embedding's rows."""
    rows = x if path == "embed/embedding" else np.swapaxes(x, -1, -2)
    back = gguf.dequantize(gguf.quantize(np.ascontiguousarray(rows), kind), kind)
    return back if path == "embed/embedding" else np.ascontiguousarray(np.swapaxes(back, -1, -2))


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("shape", [SHAPE, TIED], ids=["untied", "tied"])
def test_a_gguf_file_holds_the_weights_that_its_types_can(kind: str, shape: LlamaShape, tmp_path: Path):
    read, wanted = read_gguf(tmp_path / "m.gguf", shape, gguf.GGMLQuantizationType[kind])
    got = tree.flatten(read.load())
    assert got.keys() == tree.flatten(wanted).keys()
    for path, array in tree.flatten(wanted).items():
        np.testing.assert_array_equal(got[path], array, err_msg=path)
        assert got[path].dtype == np.float32
    assert read.context == 64
    assert jax.eval_shape(read.model.apply, read.load(), TOKENS).shape == (2, 6, 40)


def test_a_gguf_file_of_another_architecture_is_an_error(tmp_path: Path):
    with pytest.raises(ValueError, match="'mamba' model; adaptlab reads 'llama'"):
        read_gguf(tmp_path / "m.gguf", TIED, gguf.GGMLQuantizationType.F32, architecture="mamba")


def test_a_gguf_file_with_a_tensor_too_few_is_an_error_that_names_it(tmp_path: Path):
    tensors = gguf_tensors(TIED, weights(TIED))
    del tensors["blk.1.ffn_up.weight"]
    write_gguf(tmp_path / "m.gguf", TIED, tensors, gguf.GGMLQuantizationType.F32, "llama")
    with pytest.raises(ValueError, match=r"- blk\.1\.ffn_up\.weight \(64, 32\): missing"):
        pretrained(local(tmp_path / "m.gguf")).load()
