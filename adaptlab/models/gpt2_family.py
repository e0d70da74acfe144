"""GPT-2's checkpoints: Hugging Face folders whose matrices are `[input, output]`, with attention in one of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptlab.models.family import Family, refuse
from adaptlab.models.gpt2 import GPT2Shape, gpt2
from adaptlab.models.layers import ACTIVATIONS
from adaptlab.models.weights import Entry

__all__ = ["GPT2"]


def _entries(shape: GPT2Shape) -> list[Entry]:
    layer = "h.{}."
    entries = [
        Entry("embed/embedding", "wte.weight", transpose=False),
        Entry("position_embed/embedding", "wpe.weight", transpose=False),
    ]
    norms = {"norm": "ln_f", "layers/attention_norm": layer + "ln_1", "layers/feed_forward_norm": layer + "ln_2"}
    dense = {
        "layers/attention/out": layer + "attn.c_proj",
        "layers/feed_forward/up": layer + "mlp.c_fc",
        "layers/feed_forward/down": layer + "mlp.c_proj",
    }
    for first, names in (("scale", norms), ("kernel", dense)):
        for path, name in names.items():
            entries += [
                Entry(f"{path}/{first}", f"{name}.weight", transpose=False),
                Entry(f"{path}/bias", f"{name}.bias"),
            ]
    for i, part in enumerate(("query", "key", "value")):
        for ours, theirs in (("kernel", "weight"), ("bias", "bias")):
            name = f"{layer}attn.c_attn.{theirs}"
            entries.append(Entry(f"layers/attention/{part}/{ours}", name, transpose=False, part=i, parts=3))
    return entries


def _read(config: dict[str, Any], where: Path) -> GPT2Shape:
    activation = config.get("activation_function", "gelu_new")
    unsupported = {
        "activation_function": None if activation in ACTIVATIONS else activation,
        "add_cross_attention": config.get("add_cross_attention"),
        "scale_attn_weights=false": not config.get("scale_attn_weights", True),
        "scale_attn_by_inverse_layer_idx": config.get("scale_attn_by_inverse_layer_idx"),
        "tie_word_embeddings=false": not config.get("tie_word_embeddings", True),
    }
    refuse(unsupported, where, "GPT-2")
    return GPT2Shape(
        vocab_size=config["vocab_size"],
        width=config["n_embd"],
        depth=config["n_layer"],
        heads=config["n_head"],
        ffn_width=config.get("n_inner") or 4 * config["n_embd"],
        context=config["n_positions"],
        norm_eps=config.get("layer_norm_epsilon", 1e-5),
        activation=activation,
    )


def _write(shape: GPT2Shape, context: int, weights: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    config = {
        "architectures": ["GPT2LMHeadModel"],
        "vocab_size": shape.vocab_size,
        "n_embd": shape.width,
        "n_layer": shape.depth,
        "n_head": shape.heads,
        "n_inner": shape.ffn_width,
        "n_positions": context,
        "layer_norm_epsilon": shape.norm_eps,
        "activation_function": shape.activation,
        "tie_word_embeddings": True,
    }
    return config, GPT2.prefix


GPT2 = Family(
    name="gpt2",
    shape=GPT2Shape,
    model=gpt2,
    read=_read,
    write=_write,
    entries=_entries,
    context=lambda config: config["n_positions"],
    prefix="transformer.",
    # The head is tied, and the causal masks of old versions are buffers.
    unread=r"lm_head\.weight|h\.\d+\.attn\.(masked_)?bias",
)
