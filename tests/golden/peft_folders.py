"""Write folders of PEFT's, and what PEFT computes with them; needs torch, transformers, peft, and nothing of adaptlab.

    python tests/golden/peft_folders.py make OUT     tiny bases, an adapter of each method, and their references
    python tests/golden/peft_folders.py run OUT      references of adapters that somebody else put there
    python tests/golden/peft_folders.py golden       writes peft_folders.zip again

OUT holds `base/<family>` and, for each case `<family>-<method>`, the adapter and `reference.npz`: logits, and the
gradients of the cross-entropy with `targets` under the names that PEFT saves the arrays by. The stored file was made by
peft 0.21.0, transformers 5.23.0 and torch 2.13.0. Every trained array has noise added, so that none can be left out
unnoticed.
"""

import os
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).with_suffix(".zip")
ROWS, LENGTH, VOCABULARY, CLASSES, PROMPT = 3, 6, 40, 5, 3
FAMILIES = ("llama", "llama_tied", "bert", "encoder", "gpt2")


def new_base(family: str) -> Any:
    """Return a random model with every weight far from where it starts."""
    import torch
    import transformers as hf

    shared = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(FAMILIES.index(family))
    if family.startswith("llama"):
        heads = {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 4,
            "tie_word_embeddings": "tied" in family,
        }
        model = hf.LlamaForCausalLM(hf.LlamaConfig(**shared, **heads, max_position_embeddings=32, **ends))
    elif family == "gpt2":
        sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_inner": 24, "n_positions": 12}
        model = hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=VOCABULARY, **sizes, **ends))
    else:
        config = hf.BertConfig(**shared, num_attention_heads=2, max_position_embeddings=12, num_labels=CLASSES)
        model = hf.BertForSequenceClassification(config) if family == "bert" else hf.BertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model.eval()


def methods() -> dict[str, Any]:
    """Return PEFT's config of each case."""
    import peft

    lm, cls, features = ({"task_type": task} for task in ("CAUSAL_LM", "SEQ_CLS", "FEATURE_EXTRACTION"))
    lora, ada, vera = peft.LoraConfig, peft.AdaLoraConfig, peft.VeraConfig
    some, virtual, conv = ["q_proj", "v_proj", "down_proj"], {"num_virtual_tokens": PROMPT}, {"fan_in_fan_out": True}
    ranks = {"init_r": 3, "target_r": 2, "total_step": 10}
    bert, gpt2 = ["query", "value", "intermediate.dense"], ["c_attn", "mlp.c_proj"]
    network = {"prefix_projection": True, "encoder_hidden_size": 5}
    tokens, saved = {"token_indices": [1, 5]}, ["input_layernorm", "model.norm"]
    return {
        "llama-lora": lora(**lm, r=2, lora_alpha=3, target_modules=some),
        "llama-lora_all": lora(**lm, r=3, lora_alpha=16, target_modules="all-linear"),
        "llama-lora_patterns": lora(
            **lm, r=2, lora_alpha=4, target_modules=some, rank_pattern={"v_proj": 3}, alpha_pattern={"down_proj": 5}
        ),
        "llama-lora_layer": lora(**lm, r=2, target_modules=some, layers_to_transform=[1]),
        "llama-lora_embedding": lora(**lm, r=2, target_modules=["q_proj", "embed_tokens", "lm_head"]),
        "llama-lora_norms": lora(**lm, r=2, target_modules=some, modules_to_save=saved),
        "llama-rslora": lora(**lm, r=3, lora_alpha=4, target_modules=some, use_rslora=True),
        "llama-dora": lora(**lm, r=2, target_modules=some, use_dora=True),
        "llama-pissa": lora(**lm, r=2, lora_alpha=3, target_modules=some, init_lora_weights="pissa"),
        "llama-adalora": ada(**lm, **ranks, target_modules=some),
        "llama-vera": vera(**lm, r=4, target_modules=some),
        "llama-ia3": peft.IA3Config(**lm),
        "llama-prefix": peft.PrefixTuningConfig(**lm, **virtual),
        "llama-prefix_network": peft.PrefixTuningConfig(**lm, **virtual, **network),
        "llama-prompt": peft.PromptTuningConfig(**lm, **virtual),
        "llama-p_tuning": peft.PromptEncoderConfig(**lm, **virtual, encoder_hidden_size=5),
        "llama-layer_norm": peft.LNTuningConfig(**lm),
        "llama-tokens": peft.TrainableTokensConfig(**lm, **tokens),
        "llama_tied-lora_embedding": lora(**lm, r=2, target_modules=["embed_tokens"], ensure_weight_tying=True),
        "llama_tied-tokens": peft.TrainableTokensConfig(**lm, **tokens),
        "bert-lora": lora(**cls, r=2, target_modules=bert),
        "bert-dora": lora(**cls, r=2, target_modules=bert, use_dora=True),
        "bert-adalora": ada(**cls, **ranks, target_modules=bert),
        "bert-vera": vera(**cls, r=4, target_modules=bert),
        "bert-ia3": peft.IA3Config(**cls),
        "bert-prefix": peft.PrefixTuningConfig(**cls, **virtual),
        "bert-layer_norm": peft.LNTuningConfig(**cls, target_modules=["LayerNorm"]),
        "bert-tokens": peft.TrainableTokensConfig(**cls, **tokens, target_modules=["word_embeddings"]),
        "encoder-lora": lora(**features, r=2, target_modules=bert),
        "encoder-prompt": peft.PromptTuningConfig(**features, **virtual),
        "gpt2-lora": lora(**lm, r=2, lora_alpha=3, target_modules=[*gpt2, "c_fc"], **conv),
        "gpt2-dora": lora(**lm, r=2, target_modules=gpt2, use_dora=True, **conv),
        "gpt2-pissa": lora(**lm, r=2, target_modules=["c_fc"], init_lora_weights="pissa", **conv),
        "gpt2-adalora": ada(**lm, **ranks, target_modules=gpt2, **conv),
        "gpt2-vera": vera(**lm, r=4, target_modules=gpt2, **conv),
        "gpt2-ia3": peft.IA3Config(**lm),
        "gpt2-prefix": peft.PrefixTuningConfig(**lm, **virtual),
        "gpt2-prompt": peft.PromptTuningConfig(**lm, **virtual),
        "gpt2-p_tuning": peft.PromptEncoderConfig(**lm, **virtual, encoder_hidden_size=5),
        "gpt2-layer_norm": peft.LNTuningConfig(**lm),
        "gpt2-tokens": peft.TrainableTokensConfig(**lm, **tokens, target_modules=["wte"]),
    }


def inputs(family: str) -> dict[str, np.ndarray]:
    """Return tokens, for an encoder their types and rows that end in padding, and the targets of the loss."""
    rng = np.random.default_rng(7)
    arrays = {"input_ids": rng.integers(0, VOCABULARY, (ROWS, LENGTH))}
    arrays["input_ids"][0, :3] = (5, 1, 5)  # the trained tokens
    shape, classes = (ROWS, LENGTH), VOCABULARY
    if family in ("bert", "encoder"):
        arrays["token_type_ids"] = rng.integers(0, 2, (ROWS, LENGTH))
        if family == "bert":  # what an encoder computes at padding is nobody's
            arrays["attention_mask"] = (np.arange(LENGTH) < np.array([[6], [4], [5]])).astype(np.int64)
        shape, classes = ((ROWS,), CLASSES) if family == "bert" else ((ROWS, LENGTH), 16)
    return arrays | {"targets": rng.integers(0, classes, shape)}


def saved_name(name: str) -> str:
    """Return what a parameter is called in a saved adapter."""
    if name.startswith("prompt_encoder"):
        return "prompt_embeddings"
    name = name.replace(".modules_to_save.default", "").replace(".default", "")
    return name.removesuffix(".weight") if "lora_magnitude_vector" in name else name


def reference(base: Path, adapter: Path) -> dict[str, np.ndarray]:
    """Return what PEFT computes with an adapter from disk over a base from disk."""
    import peft
    import torch
    import transformers as hf

    family = adapter.name.partition("-")[0]
    auto = {"bert": hf.AutoModelForSequenceClassification, "encoder": hf.AutoModel}
    plain = auto.get(family, hf.AutoModelForCausalLM).from_pretrained(base)
    before = {name for name, _ in plain.named_parameters()}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = peft.PeftModel.from_pretrained(plain, adapter).eval()
    if missed := [str(one.message) for one in said if "missing adapter keys" in str(one.message)]:
        raise ValueError(f"{adapter}: {missed}")
    kept = {saved_name(name) for name in peft.get_peft_model_state_dict(model)}
    trained = {}
    for name, parameter in model.named_parameters():
        own = saved_name(name) in kept and "ranknum" not in name and "original_module" not in name
        own = own and ".base_layer." not in name and name.removeprefix("base_model.model.") not in before
        parameter.requires_grad_(own)
        if own:
            trained[saved_name(name)] = parameter
    arrays = {name: torch.from_numpy(x) for name, x in inputs(family).items()}
    targets = arrays.pop("targets")
    if model.active_peft_config.peft_type == "PROMPT_TUNING":
        arrays.pop("token_type_ids", None)  # PEFT's prompts take none
    out = model(**arrays)
    logits = out.logits if hasattr(out, "logits") else out.last_hidden_state
    logits = logits[:, -LENGTH:] if logits.ndim == 3 else logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, -2), targets.flatten())
    loss.backward()
    found = {"logits": logits.detach().numpy(), "loss": loss.detach().numpy()}
    return found | {f"gradient/{name}": x.grad.numpy() for name, x in trained.items() if x.grad is not None}


def make(out: Path) -> None:
    """Write bases, adapters and references."""
    import peft
    import torch

    for family in FAMILIES:
        new_base(family).save_pretrained(out / "base" / family)
    for case, config in methods().items():
        model = peft.get_peft_model(new_base(case.partition("-")[0]), config)
        torch.manual_seed(len(case))
        with torch.no_grad():
            for _, parameter in model.named_parameters():
                if parameter.requires_grad:
                    parameter.add_(0.2 * torch.randn_like(parameter))
        model.save_pretrained(out / case)
        (out / case / "README.md").unlink(missing_ok=True)
    run(out)


def run(out: Path) -> None:
    """Write the reference of every adapter there."""
    for adapter in sorted(path.parent for path in out.glob("*/adapter_config.json")):
        np.savez_compressed(
            adapter / "reference.npz", **reference(out / "base" / adapter.name.partition("-")[0], adapter)
        )


def golden() -> None:
    """Write the stored file."""
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(HERE, "w", zipfile.ZIP_DEFLATED) as stored:
        make(Path(folder))
        for file in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
            stored.writestr(zipfile.ZipInfo(str(file.relative_to(folder))), file.read_bytes(), zipfile.ZIP_DEFLATED)
    print(f"{HERE}: {HERE.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    os.environ["HF_HUB_OFFLINE"] = "1"
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")  # theirs
    command, *where = sys.argv[1:]
    {"make": make, "run": run, "golden": golden}[command](*map(Path, where))
