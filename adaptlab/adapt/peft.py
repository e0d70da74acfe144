"""Exchange with Hugging Face PEFT: folders of adapter_config.json and adapter_model.safetensors.

What is written has the names and shapes that PEFT 0.21's `save_pretrained` writes; PyTorch has no part in it.
"""

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import config, leaf, tree
from adaptlab.adapt.adaptation import Adaptation, prepared
from adaptlab.adapt.compose import chain
from adaptlab.adapt.files import SavedDelta
from adaptlab.adapt.peft_layout import PREFIX, Checkpoint, holding, modules_of, target_names, whole
from adaptlab.adapt.peft_read import READERS, Stage, read_saved
from adaptlab.adapt.peft_write import (
    write_adalora,
    write_ia3,
    write_lora,
    write_prefix,
    write_prompt,
    write_rows,
    write_vera,
)
from adaptlab.adapt.simple import partition

__all__ = [
    "CONFIG",
    "WEIGHTS",
    "Checkpoint",
    "built",
    "classes_of",
    "from_peft",
    "is_peft",
    "load_peft",
    "save_peft",
    "to_peft",
]

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_HERE = "adaptlab.adapt."

WRITERS: dict[str, Callable[..., Any]] = {
    "adalora": write_adalora,
    "dora": write_lora,
    "ia3": write_ia3,
    "lora": write_lora,
    "p_tuning": write_prompt,
    "pissa": write_lora,
    "prefix": write_prefix,
    "prompt": write_prompt,
    "textual_inversion": write_rows,
    "vera": write_vera,
}
"""By the last name of an adaptation's `_target_`."""

_WHOLE = ("frozen", "full", "layer_norm", "linear_probe", "selected")  # of whole weights: PEFT's modules_to_save
_INSIDE = {"chain": "stages", "partition": "parts"}
_PROMPTS = ("PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING")


def to_peft(
    saved: SavedDelta, base: Any, checkpoint: Checkpoint, **given: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Return the contents of adapter_config.json, and `{name: tensor}`.

    One of lora, pissa, dora, adalora, vera, ia3, prefix, prompt, p_tuning or textual_inversion, alone or in a chain or
    partition with weights that train in full, which become modules_to_save; layer norms alone become LN_TUNING. PiSSA
    is written as LoRA of rank 2R, exactly: W + s A B - A₀ B₀.

    Args:
      saved: the delta.
      base: the base's weights.
      checkpoint: how Hugging Face names them.
      **given: what the framework gives adaptations: `fresh` and `slots`.

    Raises:
      ValueError: PEFT has no such method, or not with these choices; says which, and what to do.
    """
    methods = list(_methods(saved.adapt))
    main = {_name(node) for node in methods} - set(_WHOLE)
    if unknown := sorted(main - WRITERS.keys()):
        raise ValueError(
            f"PEFT has no method for {unknown}: it reads {sorted(WRITERS)} and, beside these, {sorted(_WHOLE)}. Keep "
            f"the delta as save_delta wrote it, or if it merges, export the merged model with save_hf."
        )
    if len({WRITERS[name] for name in main}) > 1:
        raise ValueError(
            f"An adapter of PEFT has one method, and the delta has {sorted(main)}: export them one by one."
        )
    adaptation = built(saved.adapt, **given)
    delta = jax.tree.map(jnp.asarray, saved.delta)
    params = adaptation.bind(prepared(adaptation, base), delta)
    own = tree.flatten(base, leaf.is_node)
    flat = tree.flatten(params, leaf.is_node)
    flat = {path: x.dense() if isinstance(x, leaf.TrainedLayers) else x for path, x in flat.items()}
    nodes = {path: x for path, x in flat.items() if leaf.is_node(x) and type(x) is not type(own.get(path))}
    # A bias beside a scaled kernel is scaled with it, by PEFT too.
    scaled = {f"{path.removesuffix('/kernel')}/bias" for path, x in nodes.items() if isinstance(x, leaf.Scaled)}
    # What an adaptation leaves alone is the base's own leaf.
    changed = {path: x for path, x in flat.items() if path not in nodes.keys() | scaled and x is not own[path]}
    known = {row.path for row in checkpoint.rows}
    if homeless := sorted(path for path in nodes.keys() | changed.keys() if path in own and path not in known):
        raise ValueError(
            f"PEFT has no modules for {homeless} (experts and routers are not exchanged): keep the delta as save_delta "
            f"wrote it, or export the merged model with save_hf."
        )
    said, tensors = _written(main, methods, nodes, own, checkpoint, delta) if nodes else ({}, {})
    extra, more = _saved_modules(said.get("peft_type"), changed, own, checkpoint)
    about = {"task_type": checkpoint.task, "base_model_name_or_path": checkpoint.name, "inference_mode": True}
    return said | extra | about, {name: np.ascontiguousarray(x, np.float32) for name, x in (tensors | more).items()}


def from_peft(
    said: Mapping[str, Any], tensors: Mapping[str, Any], base: Any, checkpoint: Checkpoint
) -> tuple[dict[str, Any], Any]:
    """Return the config of an adaptation, a call tree, and its delta: the model that PEFT makes of the same base.

    What an adapter holds of several methods, ranks or scales becomes a `chain`. It is differentiable in the tensors.

    Args:
      said: the contents of adapter_config.json.
      tensors: `{name: tensor}`.
      base: the base's weights.
      checkpoint: how Hugging Face names them.

    Raises:
      ValueError: a method, a choice or a tensor that adaptlab does not have; names it.
    """
    kind = said.get("peft_type")
    if kind not in READERS:
        raise ValueError(f"peft_type={kind!r} is not one of those that adaptlab reads: {sorted(READERS)}.")
    if said.get("bias", "none") != "none":
        raise ValueError(f"bias={said['bias']!r}: biases trained beside an adapter are not read; merge them in PEFT.")
    flat = tree.flatten(base, leaf.is_node)
    said = {**said, "task_type": checkpoint.task}
    left = {name.removeprefix(PREFIX): x for name, x in tensors.items()}
    if kind in _PROMPTS:
        left = {name.removeprefix("base_model."): x for name, x in left.items()}
    modules = modules_of(checkpoint, flat)
    stages = [stage for stage in READERS[kind](said, left, flat, modules) if stage.delta]
    stages += read_saved(left, flat, modules)
    if left:
        raise ValueError(
            f"adaptlab has no place for {sorted(left)[:6]} ({len(left)} tensors): they are of another base, or of a "
            f"part of it that this one does not have."
        )
    if not stages:
        raise ValueError("The adapter holds nothing of the base.")
    return _chained(stages)


def save_peft(folder: str | Path, saved: SavedDelta, base: Any, checkpoint: Checkpoint, **given: Any) -> dict[str, Any]:
    """Write a saved delta as a folder that PEFT's `PeftModel.from_pretrained` reads; see `to_peft`.

    Returns:
      The contents of adapter_config.json.
    """
    from safetensors.numpy import save_file

    said, tensors = to_peft(saved, base, checkpoint, **given)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f".{WEIGHTS}.{os.getpid()}"
    save_file(tensors, partial, {"format": "pt"})
    os.replace(partial, folder / WEIGHTS)
    (folder / CONFIG).write_text(json.dumps(dict(sorted(said.items())), indent=2) + "\n")
    return said


def load_peft(folder: str | Path, base: Any, checkpoint: Checkpoint, fingerprint: str = "") -> SavedDelta:
    """Read a folder that PEFT's `save_pretrained` wrote, as a delta of the base; see `from_peft`.

    PEFT does not record which weights an adapter was trained on: names and shapes are all that is checked.

    Args:
      folder: holds adapter_config.json and adapter_model.safetensors.
      base: the base's weights.
      checkpoint: how Hugging Face names them.
      fingerprint: the SHA-256 of the base's weights.
    """
    from safetensors.numpy import load_file

    folder = Path(folder)
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        raise ValueError(f"{folder} has no {missing}: it is not an adapter of PEFT's (pickled weights are never read).")
    said = json.loads((folder / CONFIG).read_text())
    try:
        adapt, delta = from_peft(said, load_file(folder / WEIGHTS), base, checkpoint)
    except ValueError as error:
        raise ValueError(f"{folder}: {error}") from error
    delta = jax.device_get(delta)
    return SavedDelta(delta, config.validate(adapt), fingerprint, tree.digest(delta))


def built(adapt: Mapping[str, Any], **given: Any) -> Adaptation:
    """Instantiate an adaptation, giving every part of a chain or partition what the framework supplies."""
    name = _name(adapt)
    if name not in _INSIDE:
        return config.instantiate(adapt, **given)
    parts = adapt[_INSIDE[name]]
    named = parts.items() if isinstance(parts, Mapping) else ((str(i), part) for i, part in enumerate(parts))
    return {"chain": chain, "partition": partition}[name]({key: built(part, **given) for key, part in named})


def is_peft(path: str | Path) -> bool:
    """Whether a path is a folder with an adapter of PEFT's."""
    return (Path(path) / CONFIG).is_file()


def classes_of(folder: str | Path) -> int | None:
    """Return the number of classes of the classifier that a folder of PEFT's holds, or None."""
    from safetensors import safe_open

    with safe_open(Path(folder) / WEIGHTS, framework="np") as file:
        names = [name for name in file.keys() if name.endswith(".classifier.weight")]  # noqa: SIM118 (not a dict)
        return file.get_slice(names[0]).get_shape()[0] if names else None


def _written(
    main: set[str], methods: list[dict[str, Any]], nodes: Any, base: Any, checkpoint: Checkpoint, delta: Any
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    write = WRITERS[next(iter(main))]
    options: dict[str, Any] = {}
    if write is write_lora:
        low = [node for node in methods if _name(node) in main]
        options["rank_stabilised"] = all(node.get("scaling") == "rank_stabilised" for node in low)
    elif write is write_adalora:
        options["parts"] = {path: _parts(delta, path, ("p", "lambda", "q")) for path in nodes}
    elif write is write_prompt:
        options["made_by"] = next((node for node in methods if _name(node) == "p_tuning"), None)
    return write(nodes, base, checkpoint, **options)


def _saved_modules(
    kind: str | None, changed: Mapping[str, Any], base: Any, checkpoint: Checkpoint
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """What trains in full: the norms by LN_TUNING if nothing else is adapted, the rest as modules_to_save."""
    every, there = modules_of(checkpoint), modules_of(checkpoint, base)
    params = {**base, **changed}
    modules = holding(there, changed)
    said, tensors = {}, {}
    norms = [m for m in modules if m.norm] if kind is None else []
    if checkpoint.task != "SEQ_CLS" and any(m.name == "classifier" for m in modules):
        raise ValueError(
            "transformers' classifier reads BERT's pooler, and this one a mean: PEFT has no place for it. Open the "
            "base with base.model.pooling=cls."
        )
    if kind is None:
        if not norms or any(m.name != "classifier" for m in modules if m not in norms):
            raise ValueError(
                f"PEFT trains whole weights only beside one of its methods, and the delta holds just "
                f"{sorted(changed)}: keep it as save_delta wrote it, or export the merged model with save_hf."
            )
        said = {"peft_type": "LN_TUNING", "target_modules": target_names(norms, every, base)}
        for module in norms:
            for name, x in whole(module, params).items():
                stem, _, which = name.rpartition(".")
                tensors[f"{PREFIX}{stem}.ln_tuning_layers.{which}"] = x
    modules = [m for m in modules if m not in norms]
    if kind == "TRAINABLE_TOKENS":
        if modules:
            raise ValueError(f"PEFT's trainable tokens train alone, and here {sorted(changed)} train beside them.")
        return said, tensors
    # PEFT saves a classifier with every adapter of one, trained or not.
    heads = [m for m in there if checkpoint.task == "SEQ_CLS" and m.name == "classifier" and m not in modules]
    if checkpoint.task == "SEQ_CLS":
        said["modules_to_save"] = ["classifier", "score"]
    modules = [*modules, *heads]
    if names := target_names([m for m in modules if m.name != "classifier"], every, base):
        said["modules_to_save"] = [*said.get("modules_to_save", ()), *names]
    front = "base_model." if kind in _PROMPTS else PREFIX
    for module in modules:
        tensors |= {f"{front}{name}": x for name, x in whole(module, params).items()}
    return said, tensors


def _chained(stages: list[Stage]) -> tuple[dict[str, Any], Any]:
    if len(stages) == 1:
        return stages[0].adapt, tree.unflatten(stages[0].delta)
    adapt = {"_target_": f"{_HERE}chain", "stages": {stage.name: stage.adapt for stage in stages}}
    return adapt, {stage.name: tree.unflatten(stage.delta) for stage in stages}


def _methods(node: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The adaptations in a call tree, without the chains and partitions around them."""
    inside = _INSIDE.get(_name(node))
    if inside is None:
        yield dict(node)
        return
    below = node[inside]
    for one in below.values() if isinstance(below, Mapping) else below:
        yield from _methods(one)


def _name(node: Mapping[str, Any]) -> str:
    target = node["_target_"]
    return target.rpartition(".")[2] if target.startswith(_HERE) else target


def _parts(delta: Any, path: str, names: tuple[str, ...]) -> dict[str, Any]:
    """The arrays of a weight in a delta, wherever in a chain they stand."""
    flat = tree.flatten(delta)
    ends = {name: f"{path}/{name}" for name in names}
    return {name: next(x for p, x in flat.items() if f"/{p}".endswith(f"/{end}")) for name, end in ends.items()}
