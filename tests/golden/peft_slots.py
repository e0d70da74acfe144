"""Write `peft_slots.npz` again: what PEFT computes with IA3, prefix tuning, prompt tuning and p-tuning.

    python tests/golden/peft_slots.py

needs torch, transformers and peft, and nothing of adaptlab. Made by peft 0.21.0, transformers 5.23.0 and torch 2.13.0.
The model is a random Llama; every trained tensor is random, so that none of them can be left out unnoticed.
"""

from pathlib import Path

import numpy as np
import peft
import torch
import transformers

HERE = Path(__file__).with_suffix(".npz")
SIZES = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "tie_word_embeddings": False,
    "rms_norm_eps": 1e-5,
}
LENGTH, WIDTH = 3, 5
TASK = {"task_type": "CAUSAL_LM"}
METHODS = {
    "ia3": peft.IA3Config(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], **TASK),
    "prefix": peft.PrefixTuningConfig(num_virtual_tokens=LENGTH, **TASK),
    "prefix_network": peft.PrefixTuningConfig(
        num_virtual_tokens=LENGTH, prefix_projection=True, encoder_hidden_size=WIDTH, **TASK
    ),
    "prompt": peft.PromptTuningConfig(num_virtual_tokens=LENGTH, **TASK),
    "p_tuning_mlp": peft.PromptEncoderConfig(
        num_virtual_tokens=LENGTH, encoder_hidden_size=WIDTH, encoder_reparameterization_type="MLP", **TASK
    ),
    "p_tuning_lstm": peft.PromptEncoderConfig(
        num_virtual_tokens=LENGTH,
        encoder_hidden_size=WIDTH,
        encoder_reparameterization_type="LSTM",
        encoder_dropout=0.0,
        encoder_num_layers=2,
        **TASK,
    ),
}


def randomise(parameters: dict[str, torch.Tensor], seed: int) -> None:
    """Give every tensor normal noise of deviation 0.4, in the order of their names."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, x in sorted(parameters.items()):
            x.copy_(0.4 * torch.randn(x.shape, generator=generator))


def new_base() -> transformers.LlamaForCausalLM:
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(**SIZES, rope_theta=10_000.0)).eval()
    randomise(dict(base.named_parameters()), 0)
    return base


def main() -> None:
    torch.set_num_threads(1)
    ids = torch.randint(0, SIZES["vocab_size"], (2, 6), generator=torch.Generator().manual_seed(1))
    stored = {"ids": ids.numpy().astype(np.int32)}
    stored |= {f"base/{name}": x.numpy() for name, x in new_base().state_dict().items()}
    for method, config in METHODS.items():
        model = peft.get_peft_model(new_base(), config).eval()
        trained = {name: x for name, x in model.named_parameters() if x.requires_grad}
        randomise(trained, 2)
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        stored[f"{method}/logits"] = logits[:, -ids.shape[1] :].numpy()
        for name, x in trained.items():
            short = name.removeprefix("base_model.model.").replace(".default", "").removeprefix("prompt_encoder.")
            stored[f"{method}/{short}"] = x.detach().numpy()
            print(method, short, tuple(x.shape))
    np.savez_compressed(HERE, **stored)
    print(f"{HERE}: {HERE.stat().st_size / 1000:.0f} kB, peft {peft.__version__}, torch {torch.__version__}")


if __name__ == "__main__":
    main()
