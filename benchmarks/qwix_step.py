"""A worker for `benchmarks.train_step`, in a Python of its own: plain Flax Linen models, LoRA by Qwix, Optax.

    python qwix_step.py '{"model": "llama", "weights": …, "lora": "layer_.*", …}'

Reads lines from standard input; each one makes it take a step and print the seconds it took and the loss.
"""

import json
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import qwix
from flax import linen as nn
from flax import traverse_util
from flax.core import FrozenDict


class Attention(nn.Module):
    s: Any
    causal: bool
    rotary: bool
    bias: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        s, (B, T, D) = self.s, x.shape
        kv_heads, head_width = s.get("kv_heads", s["heads"]), s.get("head_width", D // s["heads"])

        def project(name: str, heads: int) -> jax.Array:
            y = nn.Dense(heads * head_width, use_bias=self.bias, name=name)(x)
            return y.reshape(B, T, heads, head_width)

        q, k, v = project("query", s["heads"]), project("key", kv_heads), project("value", kv_heads)
        if self.rotary:
            q, k = rope(q, s["rope_base"]), rope(k, s["rope_base"])
        k, v = (jnp.repeat(y, s["heads"] // kv_heads, axis=2) for y in (k, v))
        mask = nn.make_causal_mask(jnp.ones((B, T))) if self.causal else None
        y = nn.dot_product_attention(q, k, v, mask=mask).reshape(B, T, -1)
        return nn.Dense(D, use_bias=self.bias, name="out")(y)


def rope(x: jax.Array, base: float) -> jax.Array:
    T, K = x.shape[1], x.shape[-1]
    angle = jnp.arange(T)[:, None] * base ** (-jnp.arange(0, K, 2) / K)
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


class FeedForward(nn.Module):
    s: Any
    family: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width, bias = self.s["ffn_width"], self.family != "llama"
        h = nn.Dense(width, use_bias=bias, name="up")(x)
        if self.family == "llama":
            h = nn.silu(nn.Dense(width, use_bias=False, name="gate")(x)) * h
        else:
            h = nn.gelu(h, approximate=self.family == "gpt2")
        return nn.Dense(x.shape[-1], use_bias=bias, name="down")(h)


class Layer(nn.Module):
    s: Any
    family: str

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        norm = nn.RMSNorm if self.family == "llama" else nn.LayerNorm
        first, second = (
            norm(epsilon=self.s["norm_eps"], name=name) for name in ("attention_norm", "feed_forward_norm")
        )
        llama, encoder = self.family == "llama", self.family == "bert"
        attend = Attention(self.s, causal=not encoder, rotary=llama, bias=not llama, name="attention")
        feed = FeedForward(self.s, self.family, name="feed_forward")
        if encoder:
            x = first(x + attend(x))
            return second(x + feed(x))
        x = x + attend(first(x))
        return x + feed(second(x))


class Model(nn.Module):
    """Logits of the next token, or of a class from the first token or the mean of all."""

    s: Any
    family: str

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        s, T = self.s, tokens.shape[1]
        embed = nn.Embed(s["vocab_size"], s["width"], name="embed")
        x = embed(tokens)
        if self.family != "llama":
            x = x + nn.Embed(s["context"], s["width"], name="position_embed")(jnp.arange(T))[None]
        if self.family == "bert":
            x = x + nn.Embed(s["types"], s["width"], name="type_embed")(jnp.zeros_like(tokens))
            x = nn.LayerNorm(epsilon=s["norm_eps"], name="embed_norm")(x)
        for i in range(s["depth"]):
            x = Layer(s, self.family, name=f"layer_{i}")(x)
        if self.family == "bert":
            mean = s["pooling"] == "mean"
            x = jnp.mean(x, axis=1) if mean else jnp.tanh(nn.Dense(s["width"], name="pooler")(x[:, 0]))
            return nn.Dense(s["classes"], name="classifier")(x)
        norm = nn.RMSNorm if self.family == "llama" else nn.LayerNorm
        return embed.attend(norm(epsilon=s["norm_eps"], name="norm")(x))


def load(path: str, depth: int) -> Any:
    """The weights that adaptlab wrote, its stacks taken apart."""
    flat: dict[str, Any] = {}
    for name, x in np.load(path).items():
        if name.startswith("layers/"):
            flat |= {name.replace("layers", f"layer_{i}", 1): x[i] for i in range(depth)}
        else:
            flat[name] = x
    return flat


def main() -> None:
    o = json.loads(sys.argv[1])
    model: Any = Model(FrozenDict(o["shape"]), o["model"])
    if o["lora"]:
        # The module's path ends in the name of the matrix.
        rule = qwix.LoraRule(module_path=o["lora"], rank=o["rank"], alpha=o["alpha"])
        model = qwix.apply_lora_to_model(model, qwix.LoraProvider([rule]))
    batch = {name: jnp.asarray(x) for name, x in np.load(o["batch"]).items()}
    made: dict[str, Any] = traverse_util.flatten_dict(
        jax.jit(model.init)(jax.random.key(0), batch["tokens"])["params"], sep="/"
    )
    loaded = load(o["weights"], o["shape"]["depth"])
    if missing := [name for name in loaded if name not in made]:
        raise SystemExit(f"no place for {missing}")
    flat: dict[str, Any] = made | {name: jnp.asarray(x) for name, x in loaded.items()}
    trained = {name: x for name, x in flat.items() if "_lora_" in name or not o["lora"]}
    frozen = {name: x for name, x in flat.items() if name not in trained}
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(o["lr"], weight_decay=0.0))
    opt_state = optimizer.init(trained)

    def objective(trained: Any, frozen: Any) -> jax.Array:
        params = traverse_util.unflatten_dict(frozen | trained, sep="/")
        logits: Any = model.apply({"params": params}, batch["tokens"])
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["targets"])
        return jnp.sum(nats * batch["weights"]) / jnp.sum(batch["weights"])

    def step(trained: Any, opt_state: Any, frozen: Any) -> Any:
        value, grads = jax.value_and_grad(objective)(trained, frozen)
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        return optax.apply_updates(trained, updates), opt_state, value

    run = jax.jit(step, donate_argnums=(0, 1))
    print("ready", sum(x.size for x in trained.values()), flush=True)
    for _ in sys.stdin:
        begun = time.perf_counter()
        trained, opt_state, value = jax.block_until_ready(run(trained, opt_state, frozen))
        print(time.perf_counter() - begun, float(value), flush=True)


if __name__ == "__main__":
    main()
