"""The rival of `benchmarks.train_step`: the same model as one plain JAX file, without adaptlab.

What an expert would write in an afternoon: stacked layers under `lax.scan`, einsums, Optax, donated state. Adapters are
`x W + s (x A) B` on every matrix.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

LINEAR = ("q", "k", "v", "o", "gate", "up", "down")


def init(key: jax.Array, s: Any) -> Any:
    """Random weights of the sizes of a `LlamaShape`."""
    inner, kv = s.heads * s.head_width, s.kv_heads * s.head_width
    sizes = [(s.width, inner), (s.width, kv), (s.width, kv), (inner, s.width)]
    sizes += [(s.width, s.ffn_width), (s.width, s.ffn_width), (s.ffn_width, s.width)]
    keys = jax.random.split(key, len(LINEAR) + 1)
    layers = {
        n: 0.02 * jax.random.normal(k, (s.depth, *size)) for n, k, size in zip(LINEAR, keys[1:], sizes, strict=True)
    }
    layers |= {"norm1": jnp.ones((s.depth, s.width)), "norm2": jnp.ones((s.depth, s.width))}
    return {
        "embed": 0.02 * jax.random.normal(keys[0], (s.vocab_size, s.width)),
        "norm": jnp.ones(s.width),
        "layers": layers,
    }


def init_lora(key: jax.Array, params: Any, rank: int) -> Any:
    """A from the uniform distribution, B zero."""
    adapters = {}
    for name in LINEAR:
        depth, d, f = params["layers"][name].shape
        a = jax.random.uniform(key, (depth, d, rank), minval=-(d**-0.5), maxval=d**-0.5)
        adapters[name] = {"a": a, "b": jnp.zeros((depth, rank, f))}
    return adapters


def rms_norm(x: jax.Array, scale: jax.Array, eps: float) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * scale


def rope(x: jax.Array, base: float) -> jax.Array:
    T, K = x.shape[1], x.shape[-1]
    angle = jnp.arange(T)[:, None] * base ** (-jnp.arange(0, K, 2) / K)
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def block(x: jax.Array, p: Any, adapters: Any, s: Any, scale: float) -> jax.Array:
    B, T, _ = x.shape

    def linear(h: jax.Array, name: str) -> jax.Array:
        y = h @ p[name]
        return y if adapters is None else y + scale * ((h @ adapters[name]["a"]) @ adapters[name]["b"])

    h = rms_norm(x, p["norm1"], s.norm_eps)
    q = rope(linear(h, "q").reshape(B, T, s.heads, s.head_width), s.rope_base)
    k = rope(linear(h, "k").reshape(B, T, s.kv_heads, s.head_width), s.rope_base)
    v = linear(h, "v").reshape(B, T, s.kv_heads, s.head_width)
    q = q.reshape(B, T, s.kv_heads, s.heads // s.kv_heads, s.head_width)
    scores = jnp.einsum("btgnk,bsgk->bgnts", q, k) * s.head_width**-0.5
    scores = jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -1e30)
    y = jnp.einsum("bgnts,bsgk->btgnk", jax.nn.softmax(scores, axis=-1), v)
    x = x + linear(y.reshape(B, T, -1), "o")
    h = rms_norm(x, p["norm2"], s.norm_eps)
    return x + linear(jax.nn.silu(linear(h, "gate")) * linear(h, "up"), "down")


def loss(params: Any, adapters: Any, tokens: jax.Array, targets: jax.Array, s: Any, scale: float) -> jax.Array:
    def layer(x: jax.Array, xs: Any) -> Any:
        return block(x, *xs, s, scale), None

    x, _ = jax.lax.scan(layer, params["embed"][tokens], (params["layers"], adapters))
    logits = rms_norm(x, params["norm"], s.norm_eps) @ params["embed"].T
    return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()


def make_step(s: Any, optimizer: optax.GradientTransformation, lora: bool, scale: float) -> Any:
    """Return the jitted `step(trained, opt_state, base, tokens, targets)`."""

    def step(trained: Any, opt_state: Any, base: Any, tokens: jax.Array, targets: jax.Array) -> Any:
        def objective(trained: Any) -> jax.Array:
            params, adapters = (base, trained) if lora else (trained, None)
            return loss(params, adapters, tokens, targets, s, scale)

        value, grads = jax.value_and_grad(objective)(trained)
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        return optax.apply_updates(trained, updates), opt_state, value

    return jax.jit(step, donate_argnums=(0, 1))
