"""Attention over a row that no device holds: keys and values go round in a ring.

Letters: as in `adaptlab.models.blockwise`; C devices along the row, each with T / C of its tokens.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from adaptlab.models.blockwise import BLOCK, NEVER, Places, attend, attend_tangent, divisor, join
from adaptlab.models.mask import Mask

__all__ = ["ring_attention"]


class _Ring(NamedTuple):
    """What is known when the program is made: the mesh axis, C, and the chunks a device holds, c tokens long each."""

    axis: str
    devices: int
    causal: bool
    chunk: int
    block: int
    simulated: bool


def ring_attention(
    q_BTHK: jax.Array,
    k_BTGK: jax.Array,
    v_BTGK: jax.Array,
    mask: Mask,
    mesh: Any,
    *,
    axis: str = "context",
    block: int = BLOCK,
) -> tuple[jax.Array, jax.Array]:
    """Exact attention with T split over a mesh axis (ring attention, arXiv:2310.01889, alg. 1).

    In each of C rounds a device attends to the keys and values it has, while it hands them to its neighbour: C - 1
    collective-permutes forward, and no device ever gathers a row. Partial results join by their L (`join`), so the
    numbers are those of `blockwise_attention`, and the derivatives follow its rule, with dk and dv going round too. On
    the way back, keys and values go round anew; those of one layer, 2 T G K numbers, are then on the device for as long
    as that layer takes.

    A causal row is cut in 2 C chunks, of which device d gets the d-th and the d-th from the end, so that all have the
    same number of scores to compute in each round (zig-zag, the load balance that arXiv:2311.09431, sec. 3, has by
    stripes): half the time of a plain split. It costs two more permutes of half of q, k, v and of the result.

    Args:
      q_BTHK: queries, as a whole; T is, or will be, split over `axis`.
      k_BTGK: keys.
      v_BTGK: values.
      mask: who may look at whom; segments may cross from device to device.
      mesh: the devices. Inside another `shard_map` its own mesh is taken.
      axis: the mesh axis.
      block: queries and keys of a block, at most.

    Returns:
      o `[B, T, H, K]` in q's dtype and L `[B, T, H]`, split as q is.

    Raises:
      ValueError: a T that does not divide.
    """
    C = mesh.shape[axis]
    parts = 2 * C if mask.causal else C
    if mask.length % parts:
        low = mask.length // parts * parts
        raise ValueError(
            f"a row of {mask.length} tokens (a prompt's included) does not divide over {axis}={C}: "
            f"{'causal attention cuts it' if mask.causal else 'attention cuts it'} in {parts} parts; choose a length "
            f"of {low or parts} or {low + parts}, or {axis} from {_choices(mask)}."
        )
    chunk = mask.length // parts
    ring = _Ring(axis, C, mask.causal, chunk, divisor(chunk, block), mesh.devices.flat[0].platform == "cpu")
    around = jax.sharding.get_abstract_mesh()
    split = PartitionSpec(None, axis)
    return jax.shard_map(
        functools.partial(_on_device, ring),
        mesh=mesh if around.empty else around,
        in_specs=(split, split, split, PartitionSpec()),
        out_specs=(split, split),
        axis_names={axis},
        check_vma=False,
    )(q_BTHK, k_BTGK, v_BTGK, mask.segments_MT())


def _choices(mask: Mask) -> list[int]:
    each = 2 if mask.causal else 1
    return [c for c in range(1, mask.length + 1) if mask.length % (each * c) == 0][:8]


def _on_device(ring: _Ring, q: jax.Array, k: jax.Array, v: jax.Array, segments_MT: jax.Array) -> Any:
    """One device's part; `segments_MT` are those of the whole row."""
    kv = jnp.stack([k, v])
    if not ring.causal:
        return _ring(q, kv, segments_MT, ring)
    q, kv = (_zigzag(ring, x, axis) for x, axis in ((q, 1), (kv, 2)))
    o, log = _ring(q, kv, segments_MT, ring)
    return _unzigzag(ring, o, 1), _unzigzag(ring, log, 1)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _ring(q: jax.Array, kv: jax.Array, segments_MT: jax.Array, ring: _Ring) -> tuple[jax.Array, jax.Array]:
    mine = _places(ring, segments_MT, jax.lax.axis_index(ring.axis))

    def attended(kv: jax.Array, source: jax.Array) -> tuple[jax.Array, jax.Array]:
        theirs = _places(ring, segments_MT, source)
        return attend(q, kv[0], kv[1], mine, theirs, ring.causal, ring.block)

    none = (jnp.zeros(q.shape, jnp.float32), jnp.full(q.shape[:-1], NEVER, jnp.float32))
    o, log = _rounds(ring, attended, join, none, kv)
    return o.astype(q.dtype), log


@_ring.defjvp
def _ring_jvp(ring: _Ring, primals: Any, tangents: Any) -> Any:
    (q, kv, segments_MT), (dq, dkv, _) = primals, tangents
    o, log = _ring(q, kv, segments_MT, ring)
    do, dlog = _tangent(ring, (q, kv), (dq, dkv), log, segments_MT)
    return (o, log), ((do - o * dlog[..., None]).astype(o.dtype), dlog)


@functools.partial(jax.checkpoint, static_argnums=0)  # or each layer would keep the keys of the whole row
def _tangent(ring: _Ring, primals: Any, tangents: Any, log: jax.Array, segments_MT: jax.Array) -> Any:
    (q, kv), (dq, dkv) = primals, tangents
    mine = _places(ring, segments_MT, jax.lax.axis_index(ring.axis))

    def moved(each: Any, source: jax.Array) -> Any:
        kv, dkv = each
        theirs = _places(ring, segments_MT, source)
        return attend_tangent((q, *kv), (dq, *dkv), log, mine, theirs, ring.causal, ring.block)

    none = (jnp.zeros(q.shape, jnp.float32), jnp.zeros(log.shape, jnp.float32))
    return _rounds(ring, moved, lambda a, b: jax.tree.map(jnp.add, a, b), none, (kv, dkv))


def _rounds(ring: _Ring, step: Callable[..., Any], add: Callable[..., Any], total: Any, held: Any) -> Any:
    """Add to `total` what `step(held, whose)` makes of what each device holds; handing it on does not wait for it."""
    C, here = ring.devices, jax.lax.axis_index(ring.axis)
    neighbours = [(d, (d + 1) % C) for d in range(C)]

    def body(carry: Any, turn: jax.Array) -> tuple[Any, None]:
        total, held = carry
        passed = jax.lax.ppermute(held, ring.axis, neighbours)
        return (add(total, step(held, (here - turn) % C)), passed), None

    # XLA's CPU backend may run a loop beside other collectives, in another order on each device, which then wait for
    # each other for ever: there are no loops on simulated devices.
    unroll = C if ring.simulated else 1
    (total, held), _ = jax.lax.scan(body, (total, held), jnp.arange(C - 1, dtype=here.dtype), unroll=unroll)
    return add(total, step(held, (here + 1) % C))


def _places(ring: _Ring, segments_MT: jax.Array, device: jax.Array) -> Places:
    """The places in the row of what a device holds, and their segments."""
    within = jnp.arange(ring.chunk, dtype=jnp.int32)
    at_T = jnp.concatenate([chunk * ring.chunk + within for chunk in _chunks(ring, device)])
    return Places(jnp.take(segments_MT, at_T, axis=1), at_T)


def _chunks(ring: _Ring, device: jax.Array) -> list[jax.Array]:
    """The chunks a device holds; of a causal row first the one with an even number, then the other."""
    device = device.astype(jnp.int32)
    if not ring.causal:
        return [device]
    last, even = 2 * ring.devices - 1 - device, device % 2 == 0
    return [jnp.where(even, device, last), jnp.where(even, last, device)]


def _owners(ring: _Ring) -> list[list[tuple[int, int]]]:
    """Who hands its first, and its second, half to whom."""
    C = ring.devices

    def owner(chunk: int) -> int:
        return min(chunk, 2 * C - 1 - chunk)

    return [[(d, owner(2 * d + half)) for d in range(C)] for half in (0, 1)]


def _zigzag(ring: _Ring, x: jax.Array, axis: int) -> jax.Array:
    halves = zip(jnp.split(x, 2, axis), _owners(ring), strict=True)
    return jnp.concatenate([jax.lax.ppermute(half, ring.axis, to) for half, to in halves], axis)


def _unzigzag(ring: _Ring, x: jax.Array, axis: int) -> jax.Array:
    halves = zip(jnp.split(x, 2, axis), _owners(ring), strict=True)
    back = [jax.lax.ppermute(half, ring.axis, [(b, a) for a, b in to]) for half, to in halves]
    return jnp.concatenate(back, axis)
