"""Mixtral's checkpoints: Hugging Face folders."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adaptlab.models.family import Family, refuse
from adaptlab.models.llama_family import LLAMA
from adaptlab.models.mixtral import MixtralShape, mixtral
from adaptlab.models.weights import Entry

__all__ = ["MIXTRAL"]

_MOE = "model.layers.{}.block_sparse_moe."
_EXPERT = _MOE + "experts.{}."


def _entries(shape: MixtralShape) -> list[Entry]:
    shared = [e._replace(gguf="") for e in LLAMA.entries(shape.dense()) if "/feed_forward/" not in e.path]
    return [
        *shared,
        Entry("layers/feed_forward/router", _MOE + "gate.weight"),
        Entry("layers/feed_forward/gate/kernel", _EXPERT + "w1.weight"),
        Entry("layers/feed_forward/up/kernel", _EXPERT + "w3.weight"),
        Entry("layers/feed_forward/down/kernel", _EXPERT + "w2.weight"),
    ]


def _read(config: dict[str, Any], where: Path) -> MixtralShape:
    unsupported = {
        "sliding_window": config.get("sliding_window"),
        "router_jitter_noise": config.get("router_jitter_noise"),
    }
    refuse(unsupported, where, "Mixtral")
    llama = LLAMA.read({"rope_theta": _rope_base(config), **config}, where)
    return MixtralShape(
        vocab_size=llama.vocab_size,
        width=llama.width,
        depth=llama.depth,
        heads=llama.heads,
        kv_heads=llama.kv_heads,
        head_width=llama.head_width,
        ffn_width=llama.ffn_width,
        experts=config["num_local_experts"],
        active=config["num_experts_per_tok"],
        rope_base=llama.rope_base,
        norm_eps=llama.norm_eps,
        tied=llama.tied,
    )


def _rope_base(config: dict[str, Any]) -> float:
    """The base of Mixtral where a config leaves it out; a Llama's is another."""
    return (config.get("rope_parameters") or {}).get("rope_theta", 1_000_000.0)


def _write(shape: MixtralShape, context: int, weights: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    config, prefix = LLAMA.write(shape.dense(), context, weights)
    experts = {"num_local_experts": shape.experts, "num_experts_per_tok": shape.active, "sliding_window": None}
    return {**config, **experts, "architectures": ["MixtralForCausalLM"]}, prefix


MIXTRAL = Family(
    name="mixtral",
    shape=MixtralShape,
    model=mixtral,
    read=_read,
    write=_write,
    entries=_entries,
    context=lambda config: config.get("max_position_embeddings", 131_072),
    unread=LLAMA.unread,
    routed=True,
)
