"""A PyTorch worker for `benchmarks.train_step`: transformers' Llama, PEFT's LoRA, fused AdamW.

    python torch_step.py '{"mode": "lora", "compile": true, "dtype": "float32", …}'

Reads lines from standard input; each one makes it take a step and print the seconds it took.
"""

import json
import sys
import time

import torch
from transformers import LlamaConfig, LlamaForCausalLM


def main() -> None:
    o = json.loads(sys.argv[1])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=o["vocab_size"],
        hidden_size=o["width"],
        num_hidden_layers=o["depth"],
        num_attention_heads=o["heads"],
        num_key_value_heads=o["kv_heads"],
        head_dim=o["head_width"],
        intermediate_size=o["ffn_width"],
        tie_word_embeddings=True,
        use_cache=False,
    )
    model = LlamaForCausalLM(config)
    if o["mode"] == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=o["rank"], lora_alpha=o["alpha"], target_modules="all-linear"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4, weight_decay=0.0, fused=True)
    if o["compile"]:
        model = torch.compile(model)
    tokens = torch.randint(0, o["vocab_size"], (o["batch"], o["length"]))
    bfloat16 = o["dtype"] == "bfloat16"
    print("ready", sum(p.numel() for p in trained), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            loss = model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        loss.item()
        print(time.perf_counter() - begun, flush=True)


if __name__ == "__main__":
    main()
