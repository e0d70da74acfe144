"""AdapterFusion: attention over the outputs of trained adapters."""

import functools
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import jax.numpy as jnp

from adaptlab import leaf, tree
from adaptlab.adapt.adaptation import Adaptation, prepared
from adaptlab.adapt.constants import bare
from adaptlab.adapt.files import load_delta
from adaptlab.adapt.lora import Init, fan_in_uniform
from adaptlab.adapt.slots import Part, below, choose_slots, init_parts, part_axes
from adaptlab.adapt.weighted import loaded
from adaptlab.config import GIVEN, Traced

__all__ = ["fusion"]


def fusion(
    adapters: Sequence[str],
    *,
    temperature: Traced = 1.0,
    select: str | Sequence[str] = "(.*/)?feed_forward_adapter",
    slots: Annotated[Mapping[str, Any], GIVEN],
) -> Adaptation:
    """Combine adapters that are trained and frozen, by attention over what they compute (arXiv:2005.00247, sec. 3.2).

    At each slot and layer: z_a = adapter_a(y, x), s = softmax_a(y W_query · z_a W_key / temperature), and Σ_a s_a z_a
    W_value takes the place of y, what the sub-layer adds. Trains 3 D² parameters a slot and layer.

    W_value starts as the identity and the other two at random, so that the model starts as a mixture of its adapters
    and not as the base. The paper's penalty on W_value - I is not part of it.

    The adapters rest in the prepared base: they are arguments of every program, never constants in it, and all runs
    share them.

    Args:
      adapters: files that `save_delta` wrote, of adaptations that add a node at each selected slot and do nothing else
        (`bottleneck`, `compacter`), trained on this base.
      temperature: of the softmax; larger mixes more evenly.
      select: patterns of whole slot paths; by default where Pfeiffer's adapters are.
      slots: what the model declares.

    Raises:
      ValueError: no adapter, a file that is none, adapters of different bases, or a model without the slots; when
        bound, an adapter that adds nothing at a selected slot or changes anything else.
    """
    if not adapters:
        raise ValueError("fusion(adapters=[]) has nothing to combine; name the files of saved deltas.")
    bases = {path: load_delta(path).base for path in adapters}
    if len(set(bases.values())) > 1:
        raise ValueError(f"fusion combines adapters of one base, and these were trained on several: {bases}.")
    chosen = choose_slots(slots, "residual", select, "fusion")
    frozen = {path: loaded(path, slots=slots) for path in adapters}
    parts = {f"{path}/{name}": one for path, slot in chosen.items() for name, one in _parts(slot).items()}

    def prepare(base: Any) -> Any:
        return functools.reduce(lambda held, one: prepared(one, held), frozen.values(), base)

    def bind(base: Any, delta: Any) -> Any:
        flat = tree.flatten(bare(base), leaf.is_node)
        each = [_added(file, one.bind(base, {}), flat, list(chosen)) for file, one in frozen.items()]
        for path, slot in chosen.items():
            heat = jnp.full(slot.shape[:-1], temperature, jnp.float32)
            nodes = tuple(added[path] for added in each)
            flat[path] = leaf.Fusion(nodes, **below(delta, path), temperature=heat)
        return tree.unflatten(flat)

    return Adaptation(
        lambda key, base: init_parts(key, parts), bind, lambda base_axes: part_axes(parts), prepare=prepare
    )


def _parts(slot: Any) -> dict[str, Part]:
    shape, axes = (*slot.shape, slot.shape[-1]), (*slot.axes[:-1], None, slot.axes[-1])
    inits = {"query": fan_in_uniform(), "key": fan_in_uniform(), "value": _identity()}
    return {name: Part(shape, axes, init) for name, init in inits.items()}


def _identity() -> Init:
    return lambda key, shape: jnp.broadcast_to(jnp.eye(shape[-1]), shape)


def _added(file: str, bound: Any, base: Mapping[str, Any], where: Sequence[str]) -> dict[str, Any]:
    """Return the nodes at the slots that an adapter was saved for.

    Raises:
      ValueError: it adds none at a slot, or does anything else.
    """
    flat = tree.flatten(bound, leaf.is_node)
    others = [path for path, x in flat.items() if path not in where and x is not base.get(path)]
    if missing := [path for path in where if path not in flat]:
        raise ValueError(f"{file} adds nothing at {missing}, and at {others}; select the slots that all adapters have.")
    if others:
        raise ValueError(f"{file} also changes {others}; select those slots too, or take it up with chain and loaded.")
    return {path: flat[path] for path in where}
