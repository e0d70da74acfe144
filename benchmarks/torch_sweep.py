"""The rival of `benchmarks.sweep`: the same runs as one plain loop in PyTorch, one after the other.

    python torch_sweep.py '{"model": FOLDER, "data": FILE.npz, "out": FILE.json, "adapt": "full", "compile": false, …}'

What an expert would write in an afternoon: transformers' Llama, PEFT's LoRA, fused AdamW, the base read once. It does
what a run has to do and no more: no checkpoints, no saved weights, no report, and of the held-out text the loss alone.
"""

import json
import sys
import time
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import LlamaForCausalLM

Batch = dict[str, torch.Tensor]


def load_batches(data: Any, prefix: str) -> list[Batch]:
    """The batches that `benchmarks.sweep` exported, each with the attention mask of its packed documents."""
    parts = {n: torch.from_numpy(data[f"{prefix}/{n}"]) for n in ("tokens", "targets", "segments", "positions")}
    parts = {name: x.long() for name, x in parts.items()}
    parts["weights"] = torch.from_numpy(data[f"{prefix}/weights"])
    same = parts["segments"][:, :, :, None] == parts["segments"][:, :, None, :]
    parts["mask"] = (same & torch.ones(same.shape[-2:], dtype=torch.bool).tril())[:, :, None]
    return [{name: x[i] for name, x in parts.items()} for i in range(len(same))]


def total_loss(model: Any, batch: Batch) -> torch.Tensor:
    """The summed cross-entropy of the targets that count."""
    logits = model(
        input_ids=batch["tokens"], attention_mask=batch["mask"], position_ids=batch["positions"], use_cache=False
    ).logits
    nats = functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten(), reduction="none")
    return (nats * batch["weights"].flatten()).sum()


def factor(update: int, steps: int, warmup: float) -> float:
    """Linear warm-up and a straight line to zero: the update being done counts."""
    n, start = update + 1, warmup * steps
    return min(1.0, n / max(1.0, start)) * min(1.0, (steps - n) / (steps - start))


def measure(model: Any, held_out: dict[str, list[Batch]]) -> dict[str, float]:
    with torch.inference_mode():
        return {
            name: sum(float(total_loss(model, b)) for b in batches) / sum(float(b["weights"].sum()) for b in batches)
            for name, batches in held_out.items()
        }


def train(model: Any, trained: list[Any], batches: list[Batch], held_out: Any, lr: float, o: Any) -> list[Any]:
    """One run; returns what was measured on the way."""
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda i: factor(i, o["steps"], o["warmup"]))
    curve = []
    for step in range(o["steps"]):
        if step % o["measure_every"] == 0:
            curve.append({"step": step} | measure(model, held_out))
        batch = batches[step]
        loss = total_loss(model, batch) / batch["weights"].sum()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, o["clip"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        curve.append({"step": step, "loss": loss.item(), "grad_norm": norm.item()})
    return [*curve, {"step": o["steps"]} | measure(model, held_out)]


def main() -> None:
    begun, o = time.perf_counter(), json.loads(sys.argv[1])
    model: Any = LlamaForCausalLM.from_pretrained(o["model"], dtype=torch.float32)
    if o["adapt"] == "lora":
        from peft import LoraConfig, get_peft_model

        model = get_peft_model(model, LoraConfig(r=o["rank"], lora_alpha=o["alpha"], target_modules="all-linear"))
    model.eval()  # there is no dropout
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    trained, start = list(named.values()), {name: p.detach().clone() for name, p in named.items()}
    data = np.load(o["data"])
    held_out = {name: load_batches(data, f"held_out/{name}") for name in o["domains"]}
    texts = {seed: load_batches(data, f"train/{seed}") for seed in {seed for _, seed in o["runs"]}}
    forward = torch.compile(model, dynamic=False) if o["compile"] else model
    results, seconds = [], []
    for lr, seed in o["runs"]:
        from_here = time.perf_counter()
        with torch.no_grad():
            for name, p in named.items():
                key = f"lora_a/{seed}/{name}"
                p.copy_(torch.from_numpy(data[key]) if key in data else start[name])
        curve = train(forward, trained, texts[seed], held_out, lr, o)
        seconds.append(time.perf_counter() - from_here)
        results.append({"lr": lr, "seed": seed, "target_loss": curve[-1][o["domains"][0]], "curve": curve})
    stages = {"until the first run": time.perf_counter() - begun - sum(seconds), "runs": seconds}
    with open(o["out"], "w") as file:
        json.dump({"results": results, "seconds": stages, "threads": torch.get_num_threads()}, file)


if __name__ == "__main__":
    main()
