"""Layers whose weights are read through `adaptlab.leaf`, so that any weight node may stand in them.

Linen gives scopes, initialisation, scan and remat. `param` is called only while initialising: afterwards a leaf may be
a node, whose shape is not the kernel's, and `get_variable` reads it as it is.

Letters: B batch, T query time, S key time, D model, H heads, G key/value heads, N heads per key/value head, K head
width, M masks (B or 1), V vocabulary, R = N·T.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

from adaptlab import leaf, tree
from adaptlab.shard import computing_placement, constrain, constrain_rest, gather

__all__ = [
    "ACTIVATIONS",
    "Embed",
    "LayerNorm",
    "Linear",
    "RMSNorm",
    "attention",
    "attention_weights",
    "behind_prefix",
    "dot_rows",
    "dropped",
    "fan_out",
    "fitting",
    "refuse_unread",
    "residual",
    "rotary",
    "rotary_angles",
    "slot",
    "split_heads",
    "with_prefix",
]


def _gelu(x: jax.Array) -> jax.Array:
    """x Φ(x) by erf, which is a quarter cheaper on a CPU, with its derivative, than `nn.gelu`'s erfc."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * jnp.asarray(2**-0.5, x.dtype)))


ACTIVATIONS = {
    "gelu": _gelu,
    "gelu_new": functools.partial(nn.gelu, approximate=True),
    "relu": nn.relu,
}
"""By the names of Hugging Face: "gelu" is x Φ(x) (arXiv:1606.08415), "gelu_new" its approximation by tanh."""


class _Named(nn.Partitioned):
    """A new weight with the names of its axes, which are not a mesh's: Linen must not look for them on one."""

    def unbox(self, apply_constraint: bool = False) -> Any:
        del apply_constraint
        return self.value


def stored(module: nn.Module, name: str, init: Callable[..., Any], shape: tuple[int, ...], axes: tuple) -> Any:
    """Return the leaf `name` of a module where it rests: made from `init` while initialising, as bound otherwise."""
    if module.is_initializing():
        module.param(name, lambda *args: _Named(init(*args), axes), shape)
    return nn.unbox(module.get_variable("params", name))


def read(
    module: nn.Module,
    name: str,
    init: Callable[..., Any],
    shape: tuple[int, ...],
    axes: tuple,
    dtype: Any = None,
) -> Any:
    """Return the leaf `name` of a module where it computes, see `gathered`."""
    return gathered(stored(module, name, init, shape, axes), axes, dtype)


def gathered(weight: Any, axes: tuple[str | None, ...], dtype: Any = None) -> Any:
    """Bring a weight from where it rests to where it computes: on a mesh with `fsdp`, one layer's slice at a time.

    Its gradient goes the same way back. (So this is done where a layer reads its slice, inside the scan and what is
    rematerialised: neither the whole stack nor a gathered layer outlives its use.)

    Args:
      weight: an array or a node; of a node every array travels by itself, and nothing is merged.
      axes: the logical names of the matrix's axes.
      dtype: what the weight will be cast to when it is read, so that it may travel in fewer bits; None says nothing.
    """
    if not _on_many():
        return weight
    plain = not leaf.is_node(weight) or (isinstance(weight, leaf.LowRank) and not leaf.is_node(weight.w))

    def travel(x: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        x = constrain_rest(x, names)
        if plain and dtype is not None:
            x = x.astype(dtype)
        return checkpoint_name(gather(x, names), GATHERED)

    return leaf.map_arrays(travel, weight, axes)


def _on_many() -> bool:
    placement = computing_placement()
    return placement is not None and placement.mesh.size > 1


GATHERED = "gathered"
"""The name of gathered weights, for rematerialisation: they are gathered again rather than kept."""


def activations(x: jax.Array, last: str | None) -> jax.Array:
    """Say where activations `[B, D]` or `[B, T, D]` are, D having the logical name `last`; others are left alone."""
    leading = {2: ("batch",), 3: ("batch", "time")}.get(x.ndim)
    return x if leading is None else constrain(x, (*leading, last))


def split_heads(y_BTF: jax.Array, heads: int, axis: str) -> jax.Array:
    """Return `[B, T, H, K]` from `[B, T, H·K]`; `axis` is the logical name of H."""
    y_BTHK = y_BTF.reshape(*y_BTF.shape[:-1], heads, -1)
    return constrain(y_BTHK, ("batch", "time", axis, None))


def slot(module: nn.Module, name: str) -> Any:
    """Return the node bound at a slot of a module, or None."""
    return module.get_variable("params", name) if module.has_variable("params", name) else None


def residual(module: nn.Module, name: str, y: jax.Array, x: jax.Array) -> jax.Array:
    """Return what the node at a "residual" slot makes of a sub-layer's output y and input x; y itself if none is."""
    node = slot(module, name)
    return y if node is None else node(y, x)


def refuse_unread(params: Any, axes: Any, slots: Mapping[str, Any]) -> None:
    """Raise for leaves that no layer reads: a misspelt slot would otherwise train nothing, silently.

    Raises:
      ValueError: names the paths, and the slots there are.
    """
    known = tree.flatten(axes, lambda x: isinstance(x, tuple)).keys() | slots.keys()
    if unread := sorted(tree.flatten(params, leaf.is_node).keys() - known):
        raise ValueError(f"Nothing of the model reads {unread}. It has the slots {sorted(slots)}.")


def with_prefix(
    node: Any, k_BSGK: jax.Array, v_BSGK: jax.Array, mask_BTS: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Put a prefix's keys and values, which all queries see, in front of the sequence's own."""
    if node is None:
        return k_BSGK, v_BSGK, mask_BTS

    def front(prefix_PGK: jax.Array, x_BSGK: jax.Array) -> jax.Array:
        prefix = jnp.broadcast_to(prefix_PGK[None].astype(x_BSGK.dtype), (x_BSGK.shape[0], *prefix_PGK.shape))
        return jnp.concatenate([prefix, x_BSGK], axis=1)

    k_PGK, v_PGK = node.keys_values()
    seen = jnp.ones((*mask_BTS.shape[:2], k_PGK.shape[0]), bool)
    return front(k_PGK, k_BSGK), front(v_PGK, v_BSGK), jnp.concatenate([seen, mask_BTS], axis=2)


def behind_prefix(module: nn.Module, positions_BT: jax.Array) -> tuple[jax.Array, int]:
    """Return the positions of tokens behind the prefix that is bound in a model's layers, and its length P.

    A prefix is the first P tokens of the sequence, of which only keys and values are known (arXiv:2101.00190, sec.
    4.1): the text's first position is P.
    """
    layers = slot(module, "layers") or {}
    node = layers.get("attention", {}).get("prefix")
    P = 0 if node is None else node.keys_values()[0].shape[-3]
    return positions_BT + P, P


def _lifted(vector_F: jax.Array, like: jax.Array) -> jax.Array:
    """The vector as `[1, …, 1, F]`, of the rank of `like`: ranks are never promoted silently."""
    return jnp.expand_dims(vector_F, range(like.ndim - 1))


class Fanned(NamedTuple):
    """Activations that several products read, with a copy of their own for each device of `tensor` (t of them)."""

    x_BTD: jax.Array
    copies_tBTD: jax.Array


def fan_out(x_BTD: jax.Array) -> Any:
    """Say that the products that follow split their outputs over `tensor`, and share their input.

    Each of them gives the input a gradient of which every device has a summand (arXiv:1909.08053, fig. 3, operator f).
    With one copy of the input to a device, those of all products are added before the devices add theirs: one
    all-reduce for query, key and value instead of three. Elsewhere, and off a mesh, nothing changes.
    """
    placement = computing_placement()
    parts = 1 if placement is None else placement.mesh.shape["tensor"]
    if parts == 1 or x_BTD.ndim != 3:
        return x_BTD
    copies = jnp.broadcast_to(x_BTD[None], (parts, *x_BTD.shape))
    return Fanned(x_BTD, constrain(copies, ("copies", "batch", "time", "embed")))


def _in_columns(weight: Any) -> bool:
    """Whether a part of what a weight consists of is all there is to know of a part of its columns."""
    if isinstance(weight, leaf.LowRank | leaf.Scaled):
        return _in_columns(weight.w)
    if isinstance(weight, leaf.Quantized):
        return not isinstance(weight.absmax, leaf.Scales)  # these are in groups that cross columns
    return isinstance(weight, leaf.Affine) or not leaf.is_node(weight)


def _by_device(copies_tBTD: jax.Array, weight: Any, axes: tuple[str | None, ...]) -> jax.Array:
    """x W `[B, T, F]` from a copy of x per device of `tensor`, each with its columns of W."""
    parts = copies_tBTD.shape[0]

    def split(w: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
        if axes[1] not in names:
            return w
        at = names.index(axes[1])
        own = jnp.moveaxis(w.reshape(*w.shape[:at], parts, w.shape[at] // parts, *w.shape[at + 1 :]), at, 0)
        return gather(own, ("copies", *names[:at], None, *names[at + 1 :]))  # so that the gradient goes to its rest

    leaves, structure = jax.tree.flatten(leaf.map_arrays(split, weight, axes))
    mapped = [0 if new.ndim > old.ndim else None for new, old in zip(leaves, jax.tree.leaves(weight), strict=True)]

    def dot(x: jax.Array, *arrays: jax.Array) -> jax.Array:
        return dot_rows(x, jax.tree.unflatten(structure, arrays))

    y_tBTf = jax.vmap(dot, in_axes=(0, *mapped))(copies_tBTD, *leaves)
    return jnp.moveaxis(y_tBTf, 0, 2).reshape(*y_tBTf.shape[1:3], -1)


def dot_rows(x: jax.Array, weight: Any, transpose: bool = False) -> jax.Array:
    """`leaf.dot`; where a mesh splits rows, row by row: `[B, T]` merged in one axis would gather the tokens of each."""
    placement = computing_placement()
    if placement is None or placement.mesh.shape.get("context", 1) == 1 or x.ndim < 3:
        return leaf.dot(x, weight, transpose=transpose)
    return jax.vmap(lambda row: leaf.dot(row, weight, transpose=transpose))(x)


class Linear(nn.Module):
    """x W, with an optional bias; `axes` are the logical names of W's two axes. x may be `fan_out`'s."""

    features: int
    axes: tuple[str | None, str | None]
    use_bias: bool = False
    init: Callable[..., Any] = nn.initializers.normal(0.02)

    @nn.compact
    def __call__(self, given: Any) -> jax.Array:
        x = given.x_BTD if isinstance(given, Fanned) else given
        kernel_DF = read(self, "kernel", self.init, (x.shape[-1], self.features), self.axes, x.dtype)
        if isinstance(given, Fanned) and _in_columns(kernel_DF):
            y = _by_device(given.copies_tBTD, kernel_DF, self.axes)
        else:
            y = dot_rows(x, kernel_DF)
        y = activations(y, self.axes[1])
        if self.use_bias:
            axes = ("embed_vector",) if self.axes[1] == "embed" else self.axes[1:]
            bias_F = read(self, "bias", nn.initializers.zeros, (self.features,), axes)
            y = y + _lifted(leaf.dense(bias_F), y).astype(y.dtype)
        return checkpoint_name(y, self.name) if self.name else y


class Embed(nn.Module):
    """A token table: rows for ids on the way in, `attend` for logits on the way out (tied embeddings).

    Positions and token types have such tables too; they are short, so that every device keeps all of their rows:
    `rows` is the logical name of that axis.
    """

    vocab_size: int
    width: int
    dtype: Any = jnp.float32
    rows: str | None = "vocab"

    def setup(self) -> None:
        shape, self.axes = (self.vocab_size, self.width), (self.rows, "embed")
        self.table = stored(self, "embedding", nn.initializers.normal(0.02), shape, self.axes)

    def __call__(self, ids_BT: jax.Array) -> jax.Array:
        """Rows of the table, which stays where it rests: on a mesh with `fsdp` the rows travel instead.

        Every device looks up its columns of the embedding for the tokens of all, and they exchange those for all
        columns of their own tokens: less traffic than the table as soon as it has more rows than the batch tokens.
        """
        if not _on_many():
            return leaf.take(self.table, ids_BT, self.dtype)
        table = leaf.map_arrays(constrain_rest, self.table, self.axes)
        x_BTD = leaf.take(table, constrain_rest(ids_BT, ("batch", "time")), self.dtype)
        return activations(constrain_rest(x_BTD, ("batch", "time", "embed")), "embed")

    def attend(self, x_BTD: jax.Array) -> jax.Array:
        table = gathered(self.table, self.axes, x_BTD.dtype)
        return activations(dot_rows(x_BTD, table, transpose=True), self.rows)


def dropped(module: nn.Module, x: jax.Array, rate: Any) -> jax.Array:
    """Drop activations with probability `rate`, which may be traced, and scale the rest by 1 / (1 - rate).

    None drops nothing and asks the module for no key.
    """
    if rate is None:
        return x
    keep = jax.random.uniform(module.make_rng("dropout"), x.shape) >= rate
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros((), x.dtype))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · scale (arXiv:1910.07467), reduced in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = leaf.dense(read(self, "scale", nn.initializers.ones, x.shape[-1:], ("embed_vector",)))
        x32 = x.astype(jnp.float32)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + self.eps)
        return (x32 * inverse * _lifted(scale_D, x32)).astype(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean(x)) / sqrt(var(x) + eps) · scale + bias (arXiv:1607.06450, eq. 4), reduced in float32."""

    eps: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        scale_D = leaf.dense(read(self, "scale", nn.initializers.ones, x.shape[-1:], ("embed_vector",)))
        bias_D = leaf.dense(read(self, "bias", nn.initializers.zeros, x.shape[-1:], ("embed_vector",)))
        x32 = x.astype(jnp.float32)
        centred = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        inverse = jax.lax.rsqrt(jnp.mean(jnp.square(centred), axis=-1, keepdims=True) + self.eps)
        return (centred * inverse * _lifted(scale_D, x32) + _lifted(bias_D, x32)).astype(x.dtype)


def rotary_angles(positions_BT: jax.Array, width: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Return cos and sin `[B, T, 1, K/2]` of position · base^(-2i/K) (RoPE, arXiv:2104.09864, eq. 15)."""
    frequency = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angle = positions_BT[:, :, None, None].astype(jnp.float32) * frequency[None, None, None, :]
    return jnp.cos(angle), jnp.sin(angle)


def rotary(x_BTHK: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Rotate the pairs (x_i, x_{i+K/2}) by their angle: the half-split convention of Hugging Face's Llama."""
    x32 = x_BTHK.astype(jnp.float32)
    first, second = jnp.split(x32, 2, axis=-1)
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x_BTHK.dtype)


def fitting(length: int, context: int) -> None:
    """Raise ValueError for rows, a prompt's among them, that are longer than the table of learned positions."""
    if length > context:
        raise ValueError(
            f"a row of {length} tokens (those of a prompt or prefix included) is longer than the {context} positions "
            "the model has learned; use shorter rows."
        )


def attention(q_BTHK: jax.Array, k_BSGK: jax.Array, v_BSGK: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Grouped-query attention (arXiv:2305.13245): softmax(q kᵀ / √K) v, query head h reading key head h·G//H.

    Logits and the softmax are float32. Every query must see at least one key.

    Returns:
      `[B, T, H, K]` in q's dtype.
    """
    q_BTHK = constrain(q_BTHK, ("batch", "time", "heads", None))
    k_BSGK, v_BSGK = (constrain(x, ("batch", None, "kv_heads", None)) for x in (k_BSGK, v_BSGK))
    (B, T, H, K), G = q_BTHK.shape, k_BSGK.shape[2]
    weights_BGRS = _attention_weights(q_BTHK, k_BSGK, mask_BTS).astype(v_BSGK.dtype)
    y_BGRK = jnp.einsum("bgrs,bsgk->bgrk", weights_BGRS, v_BSGK)
    y_BTHK = y_BGRK.reshape(B, G, H // G, T, K).transpose(0, 3, 1, 2, 4).reshape(B, T, H, K)
    return checkpoint_name(constrain(y_BTHK, ("batch", "time", "heads", None)), "attended")


def attention_weights(q_BTHK: jax.Array, k_BSGK: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """Return the probabilities of `attention`, softmax(q kᵀ / √K), float32 `[B, H, T, S]`."""
    B, T, H, _ = q_BTHK.shape
    return _attention_weights(q_BTHK, k_BSGK, mask_BTS).reshape(B, H, T, -1)


def _attention_weights(q_BTHK: jax.Array, k_BSGK: jax.Array, mask_BTS: jax.Array) -> jax.Array:
    """The probabilities as `[B, G, R, S]`: the N query heads of a key head are further rows of one product with it.

    So keys and values are never repeated, and scores keep one shape from product to product: a reshape between them
    costs a copy on a CPU (attention, forward and backward: 1.2 to 1.9 times as fast without).
    """
    (B, T, H, K), (M, _, S), G = q_BTHK.shape, mask_BTS.shape, k_BSGK.shape[2]
    N = H // G
    q_BGRK = q_BTHK.reshape(B, T, G, N, K).transpose(0, 2, 3, 1, 4).reshape(B, G, N * T, K)
    scores_BGRS = jnp.einsum("bgrk,bsgk->bgrs", q_BGRK, k_BSGK, preferred_element_type=jnp.float32)
    mask_M1RS = jnp.broadcast_to(mask_BTS[:, None], (M, N, T, S)).reshape(M, 1, N * T, S)
    return _masked_softmax(scores_BGRS, mask_M1RS, K**-0.5)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _masked_softmax(scores: jax.Array, mask: jax.Array, scale: float) -> jax.Array:
    """p = softmax(scale · scores) over the last axis, where the mask is true; 0 elsewhere."""
    return jax.nn.softmax(jnp.where(mask, scores * scale, jnp.finfo(scores.dtype).min), axis=-1)


@_masked_softmax.defjvp
def _masked_softmax_jvp(scale: float, primals: Any, tangents: Any) -> Any:
    """dp = scale · p (ds - Σ p ds): of scores, mask and probabilities, only p is kept for the way back."""
    p, ds = _masked_softmax(*primals, scale), tangents[0]
    return p, scale * p * (ds - jnp.sum(p * ds, axis=-1, keepdims=True))
