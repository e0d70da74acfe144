"""A worker for `benchmarks.train_step`, in a Python of its own: Levanter's Llama or GPT-2, its LoRA, Optax.

    python levanter_step.py '{"model": "llama", "folder": …, "batch": …, …}'

Its Python: `pip install jax==0.4.30 haliax==1.3 equinox==0.11.8 "optax<0.2.4" "numpy<2.1"`, `levanter==1.1 --no-deps`,
and what they import; under JAX 0.5.3 and 0.10.2 it does not start. Levanter 1.1, the last release, was written for an
older JAX: `SHIMS` are names that have gone since, and its Llama splits a key into one, an array of keys today.
Its LoRA starts with a random B, so that a new adapter changes the model: B is set to 0 here, as on the other sides.

Reads lines from standard input; each one makes it take a step and print the seconds it took and the loss.
"""

import dataclasses
import json
import sys
import time
from typing import Any

import jax
import jax._src.clusters as clusters
import jax._src.tree_util as tree_util

SHIMS = {clusters: ("TpuCluster", "SlurmCluster"), tree_util: ("BuiltInKeyEntry",)}
for module, names in SHIMS.items():
    for name in names:
        if not hasattr(module, name):
            setattr(module, name, object)

import equinox as eqx  # noqa: E402
import haliax as hax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from levanter import lora  # noqa: E402
from levanter.models import llama  # noqa: E402
from levanter.models.attention import AttentionMask  # noqa: E402
from levanter.models.gpt2 import Gpt2Config, Gpt2LMHeadModel  # noqa: E402
from safetensors.numpy import load_file  # noqa: E402

MATRICES = {
    "llama": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
}


class Random:
    """`jax.random` as Levanter's Llama expects it."""

    split = staticmethod(lambda key, n=2: jax.random.split(key, n) if n > 1 else key)


llama.jrandom = Random


def load(o: dict[str, Any]) -> Any:
    """The model with the weights that adaptlab wrote; Levanter's Llama has a head of its own, here the embedding."""
    s, weights = o["shape"], load_file(f"{o['folder']}/model.safetensors")
    sizes = {"hidden_dim": s["width"], "num_layers": s["depth"], "num_heads": s["heads"]}
    sizes |= {"layer_norm_epsilon": s["norm_eps"], "gradient_checkpointing": False}
    vocab = hax.Axis("vocab", s["vocab_size"])
    if o["model"] == "llama":
        if s["kv_heads"] != s["heads"] or s["head_width"] * s["heads"] != s["width"]:
            raise SystemExit("Levanter 1.1's Llama has no grouped queries")
        config: Any = llama.LlamaConfig(seq_len=2048, intermediate_dim=s["ffn_width"], **sizes)
        model: Any = llama.LlamaLMHeadModel.init(vocab, config, key=jax.random.PRNGKey(0))
        weights.setdefault("lm_head.weight", weights["model.embed_tokens.weight"])
    else:
        off = {"embed_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0}
        config = Gpt2Config(seq_len=s["context"], scale_attn_by_inverse_layer_idx=False, **off, **sizes)
        model = Gpt2LMHeadModel.init(vocab, config, key=jax.random.PRNGKey(0))
        weights = {name.removeprefix("transformer."): x for name, x in weights.items()}
    return model.from_state_dict(weights)


def without_b(node: Any) -> Any:
    if not isinstance(node, lora.LowRankLinear):
        return node
    return dataclasses.replace(node, lora_B=jax.tree.map(jnp.zeros_like, node.lora_B))


def main() -> None:
    o = json.loads(sys.argv[1])
    config = lora.LoraConfig(target_modules=MATRICES[o["model"]], r=o["rank"], alpha=o["alpha"])
    model = lora.loraize(load(o), config, jax.random.PRNGKey(0))
    model = jax.tree.map(without_b, model, is_leaf=lora.is_lora_param)
    arrays, static = eqx.partition(model, eqx.is_array)
    frozen, trained = lora.partition_lora_params(arrays)
    batch = {name: jnp.asarray(x) for name, x in np.load(o["batch"]).items()}
    B, T = batch["tokens"].shape
    tokens = hax.named(batch["tokens"], (hax.Axis("batch", B), hax.Axis("position", T)))
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(o["lr"], weight_decay=0.0))
    opt_state = optimizer.init(trained)

    def objective(trained: Any, frozen: Any) -> jax.Array:
        model: Any = eqx.combine(lora.combine_lora_params(frozen, trained), static)
        logits = model(tokens, attn_mask=AttentionMask.causal(), key=None).rearrange(("batch", "position", "vocab"))
        nats = optax.softmax_cross_entropy_with_integer_labels(logits.array, batch["targets"])
        return jnp.sum(nats * batch["weights"]) / jnp.sum(batch["weights"])

    def step(trained: Any, opt_state: Any, frozen: Any) -> Any:
        value, grads = jax.value_and_grad(objective)(trained, frozen)
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        return optax.apply_updates(trained, updates), opt_state, value

    run = jax.jit(step, donate_argnums=(0, 1))
    print("ready", sum(x.size for x in jax.tree.leaves(trained)), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        trained, opt_state, value = jax.block_until_ready(run(trained, opt_state, frozen))
        print(time.perf_counter() - begun, float(value), flush=True)


if __name__ == "__main__":
    main()
