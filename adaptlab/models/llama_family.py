"""Llama's checkpoints: Hugging Face folders, and GGUF files."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from adaptlab.models.family import Family, refuse
from adaptlab.models.llama import LlamaShape, llama
from adaptlab.models.weights import Entry

__all__ = ["LLAMA"]


def _entries(shape: LlamaShape) -> list[Entry]:
    hf, gguf = "model.layers.{}.", "blk.{}."
    attention, mlp, heads, kv_heads = hf + "self_attn.", hf + "mlp.", shape.heads, shape.kv_heads
    entries = [
        Entry("embed/embedding", "model.embed_tokens.weight", "token_embd.weight", transpose=False),
        Entry("norm/scale", "model.norm.weight", "output_norm.weight"),
        Entry("layers/attention_norm/scale", hf + "input_layernorm.weight", gguf + "attn_norm.weight"),
        Entry("layers/feed_forward_norm/scale", hf + "post_attention_layernorm.weight", gguf + "ffn_norm.weight"),
        Entry("layers/attention/query/kernel", attention + "q_proj.weight", gguf + "attn_q.weight", True, heads),
        Entry("layers/attention/key/kernel", attention + "k_proj.weight", gguf + "attn_k.weight", True, kv_heads),
        Entry("layers/attention/value/kernel", attention + "v_proj.weight", gguf + "attn_v.weight"),
        Entry("layers/attention/out/kernel", attention + "o_proj.weight", gguf + "attn_output.weight"),
        Entry("layers/feed_forward/gate/kernel", mlp + "gate_proj.weight", gguf + "ffn_gate.weight"),
        Entry("layers/feed_forward/up/kernel", mlp + "up_proj.weight", gguf + "ffn_up.weight"),
        Entry("layers/feed_forward/down/kernel", mlp + "down_proj.weight", gguf + "ffn_down.weight"),
    ]
    return entries if shape.tied else [*entries, Entry("head/kernel", "lm_head.weight", "output.weight")]


def _read(config: dict[str, Any], where: Path) -> LlamaShape:
    rope = config.get("rope_parameters") or {}
    scaling = config.get("rope_scaling") or (rope if rope.get("rope_type", "default") != "default" else None)
    unsupported = {
        "rope_scaling": scaling,
        "attention_bias": config.get("attention_bias"),
        "mlp_bias": config.get("mlp_bias"),
        "hidden_act": None if config.get("hidden_act", "silu") == "silu" else config["hidden_act"],
    }
    refuse(unsupported, where, "Llama")
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


def _write(shape: LlamaShape, context: int, weights: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    config = {
        "architectures": ["LlamaForCausalLM"],
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
    }
    return config, ""


def _read_gguf(header: Callable[..., Any], tensors: Mapping[str, tuple[int, ...]]) -> LlamaShape:
    if experts := header("llama.expert_count", 0):
        raise ValueError(
            f"a GGUF file with llama.expert_count={experts} is a mixture of experts, which is read from a Hugging Face "
            "folder (config.json, *.safetensors) only; convert it, or open the original checkpoint."
        )
    width, heads = header("llama.embedding_length"), header("llama.attention.head_count")
    return LlamaShape(
        vocab_size=tensors["token_embd.weight"][0],
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


LLAMA = Family(
    name="llama",
    shape=LlamaShape,
    model=llama,
    read=_read,
    write=_write,
    entries=_entries,
    context=lambda config: config.get("max_position_embeddings", 2048),
    unread=r"lm_head\.weight",  # a copy of a tied embedding; the table of an untied model has it
    read_gguf=_read_gguf,
)
