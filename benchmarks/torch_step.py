"""A PyTorch worker for `benchmarks.train_step`: transformers' models, PEFT's LoRA, fused AdamW.

    python torch_step.py '{"model": "llama", "folder": …, "lora": ["q_proj"], "compile": true, "dtype": "float32", …}'

Reads lines from standard input; each one makes it take a step and print the seconds it took and the loss.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

NO_DROPOUT = {
    "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0},
    "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "llama": {},
}


def load(o: dict[str, Any]) -> Any:
    """The weights that adaptlab wrote, with PEFT's LoRA on some of the matrices, or everything to train."""
    if o["model"] == "bert":
        model = AutoModelForSequenceClassification.from_pretrained(o["folder"], **NO_DROPOUT["bert"])
    else:
        model = AutoModelForCausalLM.from_pretrained(o["folder"], use_cache=False, **NO_DROPOUT[o["model"]])
    if o["lora"]:
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=o["rank"], lora_alpha=o["alpha"], target_modules=o["lora"]))
    return model.train()


def main() -> None:
    o = json.loads(sys.argv[1])
    torch.manual_seed(0)
    model = load(o)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=o["lr"], weight_decay=0.0, fused=True)
    if o["compile"]:
        model = torch.compile(model)
    batch = np.load(o["batch"])
    tokens, targets = (torch.from_numpy(batch[name]).long() for name in ("tokens", "targets"))
    labels = targets if o["model"] == "bert" else tokens  # a decoder shifts them by itself
    bfloat16 = o["dtype"] == "bfloat16"
    print("ready", sum(p.numel() for p in trained), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            loss = model(input_ids=tokens, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        value = loss.item()
        print(time.perf_counter() - begun, value, flush=True)


if __name__ == "__main__":
    main()
