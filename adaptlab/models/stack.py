"""What all stacks of layers share: compute dtypes, rematerialisation, the scan, and the weights as a plain tree."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from adaptlab.models.intermediates import MOE_KINDS
from adaptlab.models.pipeline import Stack, layers_of
from adaptlab.models.reading import GATHERED
from adaptlab.shard import computing_placement

__all__ = ["DTYPES", "REMAT_POLICIES", "check_options", "stacked", "weights"]

_ATTENTION = ("query", "key", "value", "attended", "out")
_PRODUCTS = (*_ATTENTION, "gate", "up", "down")
_POLICIES = jax.checkpoint_policies

REMAT_POLICIES = {
    "none": None,
    "dots": _POLICIES.save_only_these_names(*_PRODUCTS),
    "attention": _POLICIES.save_only_these_names(*_ATTENTION),
    "offload": _POLICIES.save_and_offload_only_these_names(
        names_which_can_be_saved=[],
        names_which_can_be_offloaded=[*_PRODUCTS],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "full": _POLICIES.nothing_saveable,
}
"""From most memory and fewest FLOPs to the reverse. What a layer keeps for the backward pass, besides its input:

- "none": everything but weights that were gathered from other devices, which are gathered again;
- "dots": the products of activations with weights, and the attention's result;
- "attention": of those the attention's: the feed-forward, whose activations are the widest, is computed again;
- "offload": "dots", kept in the host's memory, on backends that have `pinned_host` memory;
- "full": nothing; a third more FLOPs.
"""
DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def check_options(dtype: str, remat: str) -> None:
    """Raise ValueError for a compute dtype or a rematerialisation policy that no model has."""
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not one of {sorted(DTYPES)}.")
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat={remat!r} is not one of {sorted(REMAT_POLICIES)}.")


_SHALLOW = 8  # layers


def stacked(layer: type[nn.Module], depth: int, remat: str, unroll: int | None) -> Any:
    """Return `depth` layers as one: rematerialised by policy, scanned over the leading axis of their weights.

    It is made as a module, `stacked(…)(*fields, name=…)`, and called as `layers(x, *args) -> (x, None)`. On a mesh with
    stages it is a pipeline (`adaptlab.models.pipeline.gpipe`). `last=` are the fields of the last layer, for a model
    that does not read all that it computes; they count where layers are written out, and nowhere else.

    `unroll=None` writes a shallow stack out on a CPU: a loop costs 12% of a step there, and four layers compile as fast
    without it. (30 layers gain as much, but take six times as long to compile.) Layers that are written out get their
    slices of the weights from one split, and what they keep for derivatives is never put into one array and cut again.
    Nor does the first of them compute a gradient of its input, where nothing below it trains.
    """
    if unroll is None:
        unroll = depth if jax.default_backend() == "cpu" and depth <= _SHALLOW else 1
    placement = computing_placement()
    policy = REMAT_POLICIES[remat]
    if policy is None and placement is not None and placement.mesh.shape["fsdp"] > 1:
        policy = _all_but_gathered
    written_out = unroll >= depth
    if policy is not None:
        layer = nn.remat(layer, policy=policy, prevent_cse=written_out)  # a loop prevents it by itself

    def scanned(length: int, unroll: int = unroll) -> Any:
        return nn.scan(
            layer,
            variable_axes={"params": 0, **dict.fromkeys(MOE_KINDS, 0)},
            split_rngs={"params": True, "dropout": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=length,
            unroll=min(unroll, length),
            metadata_params={nn.PARTITION_NAME: "layers"},
        )

    def make(*fields: Any, name: str, last: tuple[Any, ...] | None = None) -> Any:
        kinds = [fields] * (depth - 1) + [fields if last is None else last]
        singles = [layer(*kind, parent=None) for kind in kinds] if written_out else None
        return functools.partial(_run, scanned, singles, fields, scanned(depth)(*fields, name=name))

    return make


def _run(
    scanned: Any, singles: Sequence[nn.Module] | None, fields: Any, module: nn.Module, x: jax.Array, *args: Any
) -> Any:
    """Run the layers one after the other, or on a mesh with stages, as a pipeline."""
    recording = any(module.is_mutable_collection(kind) for kind in MOE_KINDS)
    if module.is_initializing():
        return module(x, *args)  # pyright: ignore[reportCallIssue]
    if (route := layers_of(recording)) is None:
        if singles is None or recording:
            return module(x, *args)  # pyright: ignore[reportCallIssue]
        return _one_by_one(singles, module, x, *args), None

    placement = computing_placement()

    def run(layers: Any, x: jax.Array, args: Any, key: Any) -> jax.Array:
        length = jax.tree.leaves(layers)[0].shape[0]
        # Loops in loops with collectives may deadlock on simulated devices, see `adaptlab.models.ring`.
        simulated = placement is not None and placement.mesh.devices.flat[0].platform == "cpu"
        some = scanned(length, length) if simulated else scanned(length)
        return some(*fields).apply({"params": layers}, x, *args, rngs=None if key is None else {"dropout": key})[0]

    key = module.make_rng("dropout") if module.has_rng("dropout") else None
    return route(Stack(module.variables["params"], run, x, args, key)), None


def _one_by_one(singles: Sequence[nn.Module], stack: nn.Module, x: jax.Array, *args: Any) -> jax.Array:
    """Run the layers of a stack, written out."""
    leaves, structure = jax.tree.flatten(stack.variables["params"])
    depth = leaves[0].shape[0]
    keys = jax.random.split(stack.make_rng("dropout"), depth) if stack.has_rng("dropout") else None
    parts = [[jnp.squeeze(part, 0) for part in jax.lax.split(leaf, [1] * depth)] for leaf in leaves]
    for i, own in enumerate(zip(*parts, strict=True)):
        rngs = None if keys is None else {"dropout": keys[i]}
        x, _ = singles[i].apply({"params": jax.tree.unflatten(structure, own)}, x, *args, rngs=rngs)
    return x


def _all_but_gathered(primitive: Any, *_: Any, **params: Any) -> bool:
    """What "none" keeps on a mesh with `fsdp`: gathered weights of all layers would be a copy of the whole model.

    Nor what only moves or casts: a weight on its way there, or activations, which are kept as what is made of them.
    """
    moves = ("broadcast_in_dim", "convert_element_type", "move", "reshape", "sharding_constraint", "transpose")
    return primitive.name not in moves and params.get("name") != GATHERED


def weights(module: nn.Module, *example: Any) -> tuple[Callable[[jax.Array], Any], Callable[[], Any]]:
    """Return `init` and `axes` (see `adaptlab.models.Model`) of a module that is called as `module(*example)`."""

    def boxed(key: jax.Array) -> Any:
        return module.init(key, *example)["params"]

    @functools.cache
    def axes() -> Any:
        specs = nn.get_partition_spec(jax.eval_shape(boxed, jax.random.key(0)))
        return jax.tree.map(tuple, specs, is_leaf=lambda x: isinstance(x, jax.sharding.PartitionSpec))

    return lambda key: nn.unbox(boxed(key)), axes
