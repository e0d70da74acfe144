"""A mixture of experts in place of the feed-forward: a router gives each token to K of E SwiGLU experts.

Letters: B batch, T time, D model, F width of an expert, E experts, K experts of a token, N = T·K choices of a row,
C slots of an expert in a row, S = E·C, L layers.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from adaptlab.models.intermediates import record
from adaptlab.models.layers import INIT_STD
from adaptlab.models.llama import LlamaShape
from adaptlab.models.products import dot_rows
from adaptlab.models.reading import read
from adaptlab.shard import constrain

__all__ = ["Experts", "capacity", "load_balancing_loss", "router_z_loss"]


class Experts(nn.Module):
    """Σ_k g_k · expert_{e_k}(x), with g the softmax over the K largest of the router's logits x W_r (arXiv:2401.04088,
    sec. 2.1), expert(x) = (silu(x W_gate) ∘ x W_up) W_down.

    Router, softmax and the sum over experts are float32. There are two ways to the same function:

    - `capacity_factor=None` drops no token: every expert computes every token, and gates of zero take away what was not
      asked for. Exact, with no data-dependent movement, at E/K times the FLOPs of the experts that count.
    - A number gives each expert C = ⌈capacity_factor · K · T / E⌉ slots in each row of the batch (arXiv:2006.16668,
      alg. 1, with rows as groups), filled in the order of the tokens: capacity_factor · K / E of the FLOPs above. A
      token that finds an expert full does without its contribution; "dropped" records how often. Rows are on their own
      and a token only yields to those before it in its row, so that what comes out depends neither on the rest of the
      batch nor on the mesh, and no token sees its future.

    On a mesh, tokens go to the device of their expert and back: with capacity by two all-to-alls over `expert`.

    Attributes:
      shape: the decoder's sizes.
      experts: E.
      active: K.
      capacity_factor: slots over tokens, or None.
    """

    shape: LlamaShape
    experts: int
    active: int
    capacity_factor: float | None

    @nn.compact
    def __call__(self, x_BTD: jax.Array) -> jax.Array:
        # Not a "kernel": patterns for matrices leave the router as it is unless they name it.
        shape = (x_BTD.shape[-1], self.experts)
        router_DE = read(self, "router", nn.initializers.normal(INIT_STD), shape, ("embed", None))
        x_BTD = constrain(x_BTD, ("batch", "time", "embed"))
        logits_BTE = constrain(dot_rows(x_BTD.astype(jnp.float32), router_DE), ("batch", "time", None))
        best_BTK, chosen_BTK = largest(logits_BTE, self.active)
        gate_BTK = jax.nn.softmax(best_BTK, axis=-1)
        record(self, "router", lambda: logits_BTE)
        record(self, "chosen", lambda: chosen_BTK)
        if self.capacity_factor is None:
            record(self, "dropped", lambda: jnp.zeros(x_BTD.shape[:2]))
            y_BTD = self._everywhere(x_BTD, gate_BTK, chosen_BTK)
        else:
            slots = capacity(x_BTD.shape[1], self.experts, self.active, self.capacity_factor)
            y_BTD = self._by_slots(x_BTD, gate_BTK, chosen_BTK, slots)
        return constrain(y_BTD, ("batch", "time", "embed"))

    def _swiglu(self, x: jax.Array, along: str | None) -> jax.Array:
        """All experts at once, on inputs of their own `[E, B, C, D]` or on the same ones `[B, T, D]`: `[E, B, …, D]`.

        `along` is the logical name of T, or None for C.
        """
        width = self.shape.ffn_width
        gate = _Linears(self.experts, width, ("embed", "ffn"), along, name="gate")(x)
        up = _Linears(self.experts, width, ("embed", "ffn"), along, name="up")(x)
        return _Linears(self.experts, self.shape.width, ("ffn", "embed"), along, name="down")(nn.silu(gate) * up)

    def _everywhere(self, x_BTD: jax.Array, gate_BTK: jax.Array, chosen_BTK: jax.Array) -> jax.Array:
        same_BTKE = chosen_BTK[..., None] == jnp.arange(self.experts).reshape(1, 1, 1, -1)
        gate_BTE = jnp.sum(jnp.where(same_BTKE, gate_BTK[..., None], 0.0), axis=2)
        y_EBTD = self._swiglu(constrain(x_BTD, ("expert_batch", "time", "embed")), "time")
        gate_EBT1 = jnp.moveaxis(gate_BTE, -1, 0)[..., None]
        return jnp.sum(y_EBTD.astype(jnp.float32) * gate_EBT1, axis=0).astype(x_BTD.dtype)

    def _by_slots(self, x_BTD: jax.Array, gate_BTK: jax.Array, chosen_BTK: jax.Array, C: int) -> jax.Array:
        (B, T, D), E, K = x_BTD.shape, self.experts, self.active
        slot_BN, token_BS = jax.vmap(lambda chosen_TK: assigned(chosen_TK, E, C))(chosen_BTK)
        record(self, "dropped", lambda: jnp.mean(slot_BN.reshape(B, T, K) == E * C, axis=-1, dtype=jnp.float32))
        slots_BECD = constrain(_rows(x_BTD, token_BS).reshape(B, E, C, D), ("batch", None, None, "embed"))
        slots_EBCD = constrain(slots_BECD.swapaxes(0, 1), ("experts", "expert_batch", None, "embed"))
        y_BECD = constrain(self._swiglu(slots_EBCD, None).swapaxes(0, 1), ("batch", None, None, "embed"))
        y_BTKD = _rows(y_BECD.reshape(B, E * C, D), slot_BN).reshape(B, T, K, D)
        return jnp.sum(y_BTKD.astype(jnp.float32) * gate_BTK[..., None], axis=2).astype(x_BTD.dtype)


class _Linears(nn.Module):
    """x W_e for each expert e; `axes` are the logical names of a W's two axes, `along` that of x's last but one."""

    experts: int
    features: int
    axes: tuple[str | None, str | None]
    along: str | None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.experts, x.shape[-1], self.features)
        kernel_EDF = read(self, "kernel", nn.initializers.normal(INIT_STD), shape, ("experts", *self.axes), x.dtype)
        y = jax.vmap(dot_rows, in_axes=(0 if x.ndim == 4 else None, 0))(x, kernel_EDF)
        return constrain(y, ("experts", "expert_batch", self.along, self.axes[1]))


def largest(logits_BTE: jax.Array, active: int) -> tuple[jax.Array, jax.Array]:
    """Return the K largest logits and their experts, `[B, T, K]`; of equal ones the first.

    K times the maximum, and not `jax.lax.top_k`, for which a partitioner may gather the whole batch.
    """
    left_BTE, best, chosen = jax.lax.stop_gradient(logits_BTE), [], []
    for _ in range(active):
        expert_BT = jnp.argmax(left_BTE, axis=-1).astype(jnp.int32)
        here_BTE = expert_BT[..., None] == jnp.arange(logits_BTE.shape[-1]).reshape(1, 1, -1)
        best.append(jnp.sum(jnp.where(here_BTE, logits_BTE, 0.0), axis=-1))
        chosen.append(expert_BT)
        left_BTE = jnp.where(here_BTE, -jnp.inf, left_BTE)
    return jnp.stack(best, axis=-1), jnp.stack(chosen, axis=-1)


def capacity(length: int, experts: int, active: int, factor: float) -> int:
    """Return C, the slots that an expert has for a row of `length` tokens; no expert gets a token twice."""
    return min(length, math.ceil(factor * active * length / experts))


def assigned(chosen_TK: jax.Array, experts: int, slots: int) -> tuple[jax.Array, jax.Array]:
    """Give each choice of a row's tokens a slot of its expert, first come, first served.

    Returns:
      For each choice, in the order of tokens, its slot e·C + c, or E·C if the expert is full, `[T·K]`; for each slot,
      its token, or T if it stays empty, `[E·C]`.
    """
    (T, K), N = chosen_TK.shape, chosen_TK.size
    chosen_N = chosen_TK.reshape(N)
    mine_NE = (chosen_N[:, None] == jnp.arange(experts)[None]).astype(jnp.int32)
    before_N = jnp.sum((jnp.cumsum(mine_NE, axis=0) - mine_NE) * mine_NE, axis=1)
    slot_N = jnp.where(before_N < slots, chosen_N * slots + before_N, experts * slots)
    token_N = jnp.repeat(jnp.arange(T, dtype=jnp.int32), K, total_repeat_length=N)
    token_S = jnp.full(experts * slots, T, jnp.int32).at[slot_N].set(token_N, mode="drop")
    return slot_N, token_S


def _rows(x_BTD: jax.Array, index_BN: jax.Array) -> jax.Array:
    """Return the rows of x with these indices, `[B, N, D]`; zeros for an index beyond the last."""
    return jax.vmap(lambda x, index: x.at[index].get(mode="fill", fill_value=0))(x_BTD, index_BN)


def load_balancing_loss(logits_LBTE: jax.Array, chosen_LBTK: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """E Σ_e f_e P_e (arXiv:2101.03961, eq. 4 to 6), over the tokens of all layers together, as Mixtral is trained.

    f_e is how many of a token's K choices fall on expert e, in the mean over tokens and layers, P_e the mean
    probability that the router gives it. It is K when the load is even. No gradient flows through f.

    Args:
      logits_LBTE: the router's.
      chosen_LBTK: the experts that tokens chose.
      weights_BT: how much each token counts.
    """
    E = logits_LBTE.shape[-1]
    w_1BT1 = weights_BT[None, :, :, None]
    total = jnp.maximum(jnp.sum(weights_BT), 1.0) * logits_LBTE.shape[0]
    probability_E = jnp.sum(jax.nn.softmax(logits_LBTE, axis=-1) * w_1BT1, axis=(0, 1, 2)) / total
    same_LBTKE = chosen_LBTK[..., None] == jnp.arange(E).reshape(1, 1, 1, 1, -1)
    share_E = jnp.sum(jnp.sum(same_LBTKE, axis=3, dtype=jnp.float32) * w_1BT1, axis=(0, 1, 2)) / total
    return E * jnp.sum(share_E * probability_E)


def router_z_loss(logits_LBTE: jax.Array, weights_BT: jax.Array) -> jax.Array:
    """The mean over tokens and layers of (log Σ_e exp logit_e)² (arXiv:2202.08906, eq. 5): it keeps logits small."""
    squares_LBT = jnp.square(jax.nn.logsumexp(logits_LBTE, axis=-1))
    total = jnp.maximum(jnp.sum(weights_BT), 1.0) * logits_LBTE.shape[0]
    return jnp.sum(squares_LBT * weights_BT[None]) / total
