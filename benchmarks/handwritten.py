"""The rival of `benchmarks.train_step`: the same models as one plain JAX file, without adaptlab.

What an expert would write in an afternoon: stacked layers under `lax.scan` (written out if there are few), einsums,
Optax, donated state. Weights are a nested dict, those of the layers stacked `[L, …]`; adapters are `x W + s (x A) B`
beside the matrices that are named.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

Linear = Callable[[jax.Array, str], jax.Array]


def init_lora(key: jax.Array, layers: Any, names: list[str], rank: int) -> Any:
    """A from the uniform distribution, B zero, for the named matrices of the stack, e.g. "attention/query"."""
    adapters = {}
    for name in names:
        room, matrix = name.split("/")
        depth, d, f = layers[room][matrix]["kernel"].shape
        a = jax.random.uniform(key, (depth, d, rank), minval=-(d**-0.5), maxval=d**-0.5)
        adapters[name] = {"a": a, "b": jnp.zeros((depth, rank, f))}
    return adapters


def linears(p: Any, adapters: Any, scale: float) -> Linear:
    """One layer's matrices as `linear(x, name)`."""

    def linear(x: jax.Array, name: str) -> jax.Array:
        room, matrix = name.split("/")
        w = p[room][matrix]
        y = x @ w["kernel"]
        if "bias" in w:
            y = y + w["bias"]
        if adapters and name in adapters:
            y = y + scale * ((x @ adapters[name]["a"]) @ adapters[name]["b"])
        return y

    return linear


def rms_norm(x: jax.Array, p: Any, eps: float) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * p["scale"]


def layer_norm(x: jax.Array, p: Any, eps: float) -> jax.Array:
    x = x - jnp.mean(x, axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + eps) * p["scale"] + p["bias"]


def rope(x: jax.Array, base: float) -> jax.Array:
    T, K = x.shape[1], x.shape[-1]
    angle = jnp.arange(T)[:, None] * base ** (-jnp.arange(0, K, 2) / K)
    cos, sin = jnp.cos(angle)[None, :, None], jnp.sin(angle)[None, :, None]
    a, b = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def attend(q: jax.Array, k: jax.Array, v: jax.Array, causal: bool) -> jax.Array:
    """Query heads `[B, T, H, K]` over as many key heads, or fewer."""
    B, T, H, K = q.shape
    q = q.reshape(B, T, k.shape[2], H // k.shape[2], K)
    scores = jnp.einsum("btgnk,bsgk->bgnts", q, k) * K**-0.5
    if causal:
        scores = jnp.where(jnp.tril(jnp.ones((T, T), bool)), scores, -1e30)
    return jnp.einsum("bgnts,bsgk->btgnk", jax.nn.softmax(scores, axis=-1), v).reshape(B, T, -1)


def heads(x: jax.Array, count: int) -> jax.Array:
    return x.reshape(*x.shape[:2], count, -1)


def self_attention(h: jax.Array, linear: Linear, s: Any, causal: bool) -> jax.Array:
    q, k, v = (heads(linear(h, f"attention/{name}"), s.heads) for name in ("query", "key", "value"))
    return linear(attend(q, k, v, causal), "attention/out")


def llama_layer(x: jax.Array, p: Any, linear: Linear, s: Any) -> jax.Array:
    h = rms_norm(x, p["attention_norm"], s.norm_eps)
    q = rope(heads(linear(h, "attention/query"), s.heads), s.rope_base)
    k = rope(heads(linear(h, "attention/key"), s.kv_heads), s.rope_base)
    y = attend(q, k, heads(linear(h, "attention/value"), s.kv_heads), True)
    x = x + linear(y, "attention/out")
    h = rms_norm(x, p["feed_forward_norm"], s.norm_eps)
    h = jax.nn.silu(linear(h, "feed_forward/gate")) * linear(h, "feed_forward/up")
    return x + linear(h, "feed_forward/down")


def gpt2_layer(x: jax.Array, p: Any, linear: Linear, s: Any) -> jax.Array:
    x = x + self_attention(layer_norm(x, p["attention_norm"], s.norm_eps), linear, s, True)
    h = layer_norm(x, p["feed_forward_norm"], s.norm_eps)
    return x + linear(jax.nn.gelu(linear(h, "feed_forward/up"), approximate=True), "feed_forward/down")


def bert_layer(x: jax.Array, p: Any, linear: Linear, s: Any) -> jax.Array:
    x = layer_norm(x + self_attention(x, linear, s, False), p["attention_norm"], s.norm_eps)
    h = jax.nn.gelu(linear(x, "feed_forward/up"), approximate=False)
    return layer_norm(x + linear(h, "feed_forward/down"), p["feed_forward_norm"], s.norm_eps)


def stack(layer: Callable[..., jax.Array], x: jax.Array, params: Any, adapters: Any, s: Any, scale: float) -> jax.Array:
    def body(x: jax.Array, xs: Any) -> Any:
        p, own = xs
        return layer(x, p, linears(p, own, scale), s), None

    return jax.lax.scan(body, x, (params["layers"], adapters), unroll=s.depth if s.depth <= 8 else 1)[0]


def llama(params: Any, adapters: Any, tokens: jax.Array, s: Any, scale: float) -> jax.Array:
    table = params["embed"]["embedding"]
    x = stack(llama_layer, table[tokens], params, adapters, s, scale)
    return rms_norm(x, params["norm"], s.norm_eps) @ table.T


def gpt2(params: Any, adapters: Any, tokens: jax.Array, s: Any, scale: float) -> jax.Array:
    table = params["embed"]["embedding"]
    x = table[tokens] + params["position_embed"]["embedding"][: tokens.shape[1]]
    x = stack(gpt2_layer, x, params, adapters, s, scale)
    return layer_norm(x, params["norm"], s.norm_eps) @ table.T


def bert(params: Any, adapters: Any, tokens: jax.Array, s: Any, scale: float) -> jax.Array:
    """Logits of classes, from the first token, or without a pooler from the mean of all."""
    x = params["embed"]["embedding"][tokens] + params["position_embed"]["embedding"][: tokens.shape[1]]
    x = layer_norm(x + params["type_embed"]["embedding"][0], params["embed_norm"], s.norm_eps)
    x = stack(bert_layer, x, params, adapters, s, scale)
    if (pooler := params.get("pooler")) is None:
        x = jnp.mean(x, axis=1)
    else:
        x = jnp.tanh(x[:, 0] @ pooler["kernel"] + pooler["bias"])
    return x @ params["classifier"]["kernel"] + params["classifier"]["bias"]


MODELS = {"llama": llama, "gpt2": gpt2, "bert": bert}


def make_step(family: str, s: Any, optimizer: optax.GradientTransformation, lora: bool, scale: float) -> Any:
    """Return the jitted `step(trained, opt_state, base, tokens, targets, weights)`."""

    def step(trained: Any, opt_state: Any, base: Any, tokens: jax.Array, targets: jax.Array, weights: jax.Array) -> Any:
        def objective(trained: Any) -> jax.Array:
            params, adapters = (base, trained) if lora else (trained, None)
            logits = MODELS[family](params, adapters, tokens, s, scale)
            nats = optax.softmax_cross_entropy_with_integer_labels(logits, targets)
            return jnp.sum(nats * weights) / jnp.sum(weights)

        value, grads = jax.value_and_grad(objective)(trained)
        updates, opt_state = optimizer.update(grads, opt_state, trained)
        return optax.apply_updates(trained, updates), opt_state, value

    return jax.jit(step, donate_argnums=(0, 1))
