"""Write tiny random models of transformers and what they compute: `python -m tests.golden.families`.

Needs torch and transformers (the `reference` extra) and nothing of adaptlab, so that running it cannot make a wrong
model right. The stored files were made by transformers 5.23.0 on torch 2.13.0.
"""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HOME = Path(__file__).parent
ROWS, LENGTH, VOCABULARY, CLASSES = 3, 7, 40, 5
SIZES = {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
BERT = {**SIZES, "intermediate_size": 24, "max_position_embeddings": 12, "type_vocab_size": 2, "num_labels": CLASSES}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 12}
MIXTRAL = {
    **SIZES,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 12,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 64,
    "output_router_logits": True,
}
NAMES = ("tiny_bert", "tiny_bert_relu", "tiny_gpt2")
ROUTED = ("tiny_mixtral",)


def build(name: str) -> Any:
    """Return transformers' model: random, with every weight, norm and bias far from where it starts."""
    import torch
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        GPT2Config,
        GPT2LMHeadModel,
        MixtralConfig,
        MixtralForCausalLM,
    )

    torch.set_num_threads(1)
    torch.manual_seed(0)
    make: dict[str, Callable[[], Any]] = {
        "tiny_bert": lambda: BertForSequenceClassification(BertConfig(**BERT)),
        "tiny_bert_relu": lambda: BertForSequenceClassification(
            BertConfig(**BERT, hidden_act="relu", layer_norm_eps=1e-3)
        ),
        "tiny_gpt2": lambda: GPT2LMHeadModel(GPT2Config(**GPT2)),
        "tiny_mixtral": lambda: MixtralForCausalLM(MixtralConfig(**MIXTRAL)),
    }
    model = make[name]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def inputs(name: str, rows: int = ROWS, length: int = LENGTH) -> dict[str, np.ndarray]:
    """Return tokens, for an encoder token types, and for it and a mixture of experts rows that end in padding."""
    rng = np.random.default_rng(len(name))
    arrays = {"input_ids": rng.integers(0, VOCABULARY, (rows, length))}
    if "bert" in name:
        arrays["token_type_ids"] = rng.integers(0, 2, (rows, length))
    if "gpt2" not in name:
        arrays["attention_mask"] = (np.arange(length) < rng.integers(3, length + 1, (rows, 1))).astype(np.int64)
    return arrays


def outputs(model: Any, arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the logits, of an encoder the last layer's activations and the pooler's, of routers what they say."""
    import torch

    tensors = {key: torch.from_numpy(x) for key, x in arrays.items()}
    with torch.no_grad():
        output = model(**tensors)
        found = {"logits": output.logits}
        if "router_logits" in output:
            router = torch.stack(output.router_logits).reshape(len(output.router_logits), *output.logits.shape[:2], -1)
            found |= {"router": router, "balance": output.aux_loss}
        if hasattr(model, "bert"):
            encoded = model.bert(**tensors)
            found |= {"hidden": encoded.last_hidden_state, "pooled": encoded.pooler_output}
    return {key: x.numpy() for key, x in found.items()}


def main() -> None:
    for name in (*NAMES, *ROUTED):
        model, arrays = build(name), inputs(name)
        model.save_pretrained(HOME / name)
        config = json.loads((HOME / name / "config.json").read_text())
        np.savez_compressed(HOME / name / "reference.npz", **arrays, **outputs(model, arrays))
        size = sum(file.stat().st_size for file in (HOME / name).iterdir())
        print(f"{name}: transformers {config['transformers_version']}, {size / 1000:.0f} kB")


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # theirs
        main()
