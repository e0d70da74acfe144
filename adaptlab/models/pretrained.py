"""Pretrained models from files: GGUF, and Hugging Face folders of safetensors. Nothing is ever unpickled."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adaptlab import tree
from adaptlab.gguf import TensorInfo, load_gguf_header
from adaptlab.models.llama import LlamaShape, llama
from adaptlab.models.model import Pretrained
from adaptlab.models.weights import Entry, assemble, disassemble, llama_entries
from adaptlab.source import Source

__all__ = ["pretrained", "save_hf"]


def pretrained(
    source: Source,
    *,
    name: str | None = None,
    dtype: str = "float32",
    remat: str = "none",
    unroll: int | None = None,
) -> Pretrained:
    """Return the model that a file describes; its weights are read when `load` is called.

    Args:
      source: a `.gguf` file, or a folder with `config.json` and `*.safetensors`.
      name: what to call it; by default the source's name.
      dtype: compute dtype, see `llama`.
      remat: what the backward pass recomputes, see `llama`.
      unroll: layers per scan iteration, see `llama`.

    Raises:
      ValueError: neither format, or an architecture that adaptlab does not have.
    """
    path = Path(source.fetch())
    shape, context, load = _open_gguf(path) if path.suffix == ".gguf" else _open_hf(path)
    model = llama(shape, dtype=dtype, remat=remat, unroll=unroll)
    return Pretrained(name or source.name, model, load, source.sha256 or _fingerprint(path), context)


def _shapes(shape: LlamaShape) -> dict[str, tuple[int, ...]]:
    params = jax.eval_shape(llama(shape).init, jax.random.key(0))
    return {path: x.shape for path, x in tree.flatten(params).items()}


def _entries(shape: LlamaShape) -> list[Entry]:
    return llama_entries(heads=shape.heads, kv_heads=shape.kv_heads, tied=shape.tied)


def _weight_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no *.safetensors file (pickled weights are never read).")
    return files


def _fingerprint(path: Path) -> str:
    sha = hashlib.sha256()
    for file in _weight_files(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                sha.update(block)
    return sha.hexdigest()


def _require(architecture: str, where: Path) -> None:
    if architecture != "llama":
        raise ValueError(f"{where} is a {architecture!r} model; adaptlab reads 'llama'.")


# GGUF ------------------------------------------------------------------------------------------------------------


def _open_gguf(path: Path) -> tuple[LlamaShape, int, Callable[[], Any]]:
    metadata, tensors = load_gguf_header(path)

    def header(key: str, default: Any = None) -> Any:
        value = metadata.get(key, default)
        if value is None:
            raise ValueError(f"{path} has no {key!r} in its header.")
        return value

    _require(header("general.architecture"), path)
    width, heads = header("llama.embedding_length"), header("llama.attention.head_count")
    shape = LlamaShape(
        vocab_size=tensors["token_embd.weight"].shape[0],
        width=width,
        depth=header("llama.block_count"),
        heads=heads,
        kv_heads=header("llama.attention.head_count_kv", heads),
        head_width=header("llama.attention.key_length", width // heads),
        ffn_width=header("llama.feed_forward_length"),
        rope_base=float(header("llama.rope.freq_base", 10_000.0)),
        norm_eps=float(header("llama.attention.layer_norm_rms_epsilon")),
        tied="output.weight" not in tensors,
    )

    def load() -> Any:
        found = {name: tensor.shape for name, tensor in tensors.items()}
        data = np.memmap(path, np.uint8, "r")

        def read(name: str, entry: Entry) -> np.ndarray:
            array = _dequantise(data, tensors[name])
            return _deinterleave(array, entry.rotary_heads) if entry.rotary_heads else array

        return assemble(_entries(shape), lambda e: e.gguf, _shapes(shape), found, read, str(path))

    return shape, header("llama.context_length"), load


def _dequantise(data: np.ndarray, tensor: TensorInfo) -> np.ndarray:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    kind = GGMLQuantizationType(tensor.type)
    block, block_bytes = GGML_QUANT_SIZES[kind]
    row_bytes = tensor.shape[-1] // block * block_bytes
    rows = math.prod(tensor.shape[:-1])
    raw = data[tensor.start : tensor.start + rows * row_bytes].reshape(*tensor.shape[:-1], row_bytes)
    return dequantize(raw, kind)


def _deinterleave(rows: np.ndarray, heads: int) -> np.ndarray:
    """Undo llama.cpp's order of rotary rows, (0, K/2, 1, K/2+1, …) within each head."""
    pairs = rows.reshape(heads, -1, 2, rows.shape[-1])
    return pairs.swapaxes(1, 2).reshape(rows.shape)


# Hugging Face ----------------------------------------------------------------------------------------------------


def _hf_shape(config: dict[str, Any], where: Path) -> LlamaShape:
    _require(config.get("model_type", "unknown"), where)
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
    unsupported = {
        "rope_scaling": scaling,
        "attention_bias": config.get("attention_bias"),
        "mlp_bias": config.get("mlp_bias"),
        "hidden_act": None if config.get("hidden_act", "silu") == "silu" else config["hidden_act"],
    }
    if asked := {key: value for key, value in unsupported.items() if value}:
        raise ValueError(f"{where} asks for {asked}, which adaptlab's Llama does not have.")
    heads = config["num_attention_heads"]
    return LlamaShape(
        vocab_size=config["vocab_size"],
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_width=config.get("head_dim") or config["hidden_size"] // heads,
        ffn_width=config["intermediate_size"],
        rope_base=float(config.get("rope_theta") or rope.get("rope_theta", 10_000.0)),
        norm_eps=config["rms_norm_eps"],
        tied=config.get("tie_word_embeddings", False),
    )


def _open_hf(path: Path) -> tuple[LlamaShape, int, Callable[[], Any]]:
    from safetensors import safe_open

    config_path = path / "config.json"
    if not config_path.is_file():
        raise ValueError(f"{path} is neither a .gguf file nor a folder with config.json and *.safetensors.")
    config = json.loads(config_path.read_text())
    shape = _hf_shape(config, config_path)

    def load() -> Any:
        files = [safe_open(file, framework="np") for file in _weight_files(path)]
        home = {name: file for file in files for name in _tensor_names(file.keys(), shape.tied)}
        found = {name: tuple(file.get_slice(name).get_shape()) for name, file in home.items()}

        def read(name: str, _: Entry) -> np.ndarray:
            return home[name].get_tensor(name).astype(np.float32)

        return assemble(_entries(shape), lambda e: e.hf, _shapes(shape), found, read, str(path))

    return shape, config.get("max_position_embeddings", 2048), load


def _tensor_names(names: Iterable[str], tied: bool) -> list[str]:
    """The checkpoint's tensors, without the copy of a tied embedding that some writers add as a head."""
    return [name for name in names if not (tied and name == "lm_head.weight")]


def save_hf(folder: str | Path, shape: LlamaShape, params: Any, context: int) -> None:
    """Write plain (merged) weights as a folder that `transformers.LlamaForCausalLM.from_pretrained` reads."""
    from safetensors.numpy import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(disassemble(_entries(shape), params), folder / "model.safetensors", {"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": shape.vocab_size,
        "hidden_size": shape.width,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_width,
        "intermediate_size": shape.ffn_width,
        "rope_theta": shape.rope_base,
        "rms_norm_eps": shape.norm_eps,
        "tie_word_embeddings": shape.tied,
        "max_position_embeddings": context,
        "hidden_act": "silu",
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
