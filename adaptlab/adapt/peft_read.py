"""From PEFT's tensors to a config and a delta: one reader for each peft_type.

A reader takes what `adapter_config.json` says, `{name without PEFT's prefix: tensor}`, the base `{path: weight}` and
the modules that it has, and returns the stages of an adaptation: for each its config, a call tree, and its delta
`{path: array}`. Readers take from the tensors what they have read. Only jax.numpy works on tensors, so that derivatives
go through.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from adaptlab import leaf
from adaptlab.adapt.peft_layout import (
    Module,
    layer_names,
    shape_of,
    split_outputs,
    stack_layers,
    unwhole,
    whole,
)
from adaptlab.leaf.random import uniform_matrix

__all__ = ["READERS", "Stage", "read_saved"]

Flat = dict[str, Any]

_RANKNUM = 1e-5  # PEFT divides AdaLoRA's alpha by the rank plus this
_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")  # these leave the base's weights as they are


class Stage(NamedTuple):
    """One adaptation: its name in a chain, its config, and its delta."""

    name: str
    adapt: dict[str, Any]
    delta: Flat


def _read_lora(config: Mapping[str, Any], tensors: Flat, base: Flat, modules: Sequence[Module]) -> list[Stage]:
    """LoRA, rsLoRA, DoRA and PiSSA: one stage for each rank and scale.

    The parts of a fused module get copies of its A: the same model, in which the copies train apart.
    """
    _refuse(
        config,
        *("layer_replication", "target_parameters", "alora_invocation_tokens", "arrow_config", "use_qalora"),
        *("lora_bias", "use_bdlora", "trainable_token_indices", "monteclora_config", "kasa_config"),
    )
    start = config.get("init_lora_weights", True)
    iterations = None
    if isinstance(start, str) and start.startswith("pissa"):
        iterations = int(start.rpartition("_")[2]) if "_niter_" in start else None
        factory = "pissa"
    elif start in _PLAIN_INITS:
        factory = "dora" if config.get("use_dora") else "lora"
    else:
        raise ValueError(
            f"init_lora_weights={start!r} has changed the base's own weights, which are not in the adapter: in PEFT, "
            f"save it with path_initial_model_for_weight_conversion, as plain LoRA."
        )
    groups: dict[tuple[int, float], Flat] = {}
    for module in modules:
        kinds = ("lora_embedding_A", "lora_embedding_B") if module.embedding else ("lora_A.weight", "lora_B.weight")
        a, b = (stack_layers(module, f".{kind}", tensors, base, jnp.zeros_like) for kind in kinds)
        if a is None or b is None:
            continue
        if module.embedding and config["task_type"] == "CAUSAL_LM" and "head/kernel" not in base:
            _take_tied_head(tensors, module.name, a, b)
        if factory == "pissa" and len(module.weight) > 1:
            raise ValueError(
                f"PiSSA of the fused {module.name} has factors that its parts do not have: in PEFT, save it with "
                f"path_initial_model_for_weight_conversion, as plain LoRA."
            )
        scale, factors = _scales(config, module, tensors, kinds[0], base)
        a, b = a.swapaxes(-1, -2), b.swapaxes(-1, -2)
        b = b if factors is None else b * factors[:, None, None]
        own = groups.setdefault((a.shape[-1], scale), {})
        for path, part in split_outputs(module, b, base).items():
            own |= {f"{path}/a": a, f"{path}/b": part}
        if factory == "dora":
            lengths = stack_layers(module, ".lora_magnitude_vector", tensors, base)
            own |= {f"{path}/magnitude": x for path, x in split_outputs(module, lengths, base).items()}
        _take(tensors, module, base, *kinds, "lora_magnitude_vector", "base_layer.weight")
    stabilised = bool(config.get("use_rslora")) and factory == "lora"
    stages = []
    for (rank, scale), delta in groups.items():
        alpha = float(f"{scale * (rank**0.5 if stabilised else rank):.12g}")
        adapt = {"_target_": f"adaptlab.adapt.{factory}", "rank": rank, "alpha": alpha, "select": _select(delta)}
        if factory == "lora":
            adapt["scaling"] = "rank_stabilised" if stabilised else "standard"
        if factory == "pissa":
            adapt["iterations"] = iterations
        stages.append(Stage(factory if len(groups) == 1 else f"{factory}_{len(stages)}", adapt, delta))
    return stages


def _take_tied_head(tensors: Flat, name: str, a: Any, b: Any) -> None:
    """Check that a head that is the table is adapted as the table is: to PEFT it is a module of its own."""
    head = [tensors.pop(f"lm_head.lora_{kind}.weight", None) for kind in "AB"]
    tensors.pop("lm_head.base_layer.weight", None)
    for own, other in zip(head, (b.T, a.T), strict=True):
        if own is None or (not isinstance(own, Tracer) and not np.array_equal(own, np.asarray(other))):
            raise ValueError(
                f"The adapter changes {name} and not the head, which is the same table, in the same way; adaptlab's "
                f"tied head reads the table as it is adapted: train it in PEFT with ensure_weight_tying=True."
            )


def _scales(config: Mapping[str, Any], module: Module, tensors: Flat, kind: str, base: Flat) -> tuple[float, Any]:
    """The scale of a module, and the layers' own over it if they differ."""
    scales = []
    for name in layer_names(module, base):
        if f"{name}.{kind}" in tensors:
            rank = tensors[f"{name}.{kind}"].shape[0]
            alpha = _pattern(config.get("alpha_pattern"), name, config["lora_alpha"])
            scales.append(alpha / (rank**0.5 if config.get("use_rslora") else rank))
        else:
            scales.append(None)
    first = next(scale for scale in scales if scale is not None)
    if all(scale in (None, first) for scale in scales):
        return first, None
    return first, jnp.asarray([(scale or first) / first for scale in scales], jnp.float32)


def _pattern(patterns: Mapping[str, Any] | None, name: str, usual: Any) -> Any:
    found = (value for key, value in (patterns or {}).items() if re.fullmatch(rf"(.*\.)?({key})", name))
    return next(found, usual)


def _read_adalora(config: Mapping[str, Any], tensors: Flat, base: Flat, modules: Sequence[Module]) -> list[Stage]:
    """AdaLoRA; ranks that were dropped come back as zeros."""
    rank, delta = config["init_r"], {}
    for module in modules:
        a, b, e = (stack_layers(module, f".lora_{k}", tensors, base, jnp.zeros_like) for k in "ABE")
        if a is None or b is None or e is None:
            continue
        grown = [(0, 0)] * (a.ndim - 2) + [(0, rank - a.shape[-2]), (0, 0)]
        a, e = jnp.pad(a, grown), jnp.pad(e, grown)
        b = jnp.pad(b, [*grown[:-2], (0, 0), (0, rank - b.shape[-1])])
        for path, q in split_outputs(module, b.swapaxes(-1, -2), base).items():
            delta |= {f"{path}/p": a.swapaxes(-1, -2), f"{path}/lambda": e[..., 0], f"{path}/q": q}
        _take(tensors, module, base, "lora_A", "lora_B", "lora_E")
    # λ scales a row of PEFT's A, and of ours the row of Q: the same product.
    alpha = config["lora_alpha"] * rank / (rank + _RANKNUM)
    adapt = {"_target_": "adaptlab.adapt.adalora", "rank": rank, "alpha": alpha, "select": _select(delta)}
    return [Stage("adalora", adapt, delta)]


def _read_vera(config: Mapping[str, Any], tensors: Flat, base: Flat, modules: Sequence[Module]) -> list[Stage]:
    """VeRA if its matrices are those of the seed here; else, as of PyTorch's generator, the LoRA that it equals."""
    if "base_model.vera_A" not in tensors:
        raise ValueError(
            "The adapter's random matrices are not in its file, and only PyTorch makes them again: save it in PEFT "
            "with save_projection=True."
        )
    wide_a, wide_b = (np.asarray(tensors.pop(f"base_model.vera_{kind}"), np.float32) for kind in "AB")
    rank, seed = config["r"], int(config["projection_prng_key"])
    bounds = ((6.0 / wide_a.shape[1]) ** 0.5, (6.0 / rank) ** 0.5)
    own_a = uniform_matrix(seed, (wide_a.shape[1], rank), bounds[0]).T
    own_b = uniform_matrix(seed + 1, (wide_b.shape[0], rank), bounds[1])
    same = np.array_equal(own_a, wide_a) and np.array_equal(own_b, wide_b)
    vera, low_rank = {}, {}
    for module in modules:
        kinds = (".vera_lambda_d", ".vera_lambda_b")
        d, b = (stack_layers(module, kind, tensors, base, jnp.zeros_like) for kind in kinds)
        if d is None or b is None:
            continue
        width = shape_of(module.weight[0], base)[-2]
        a, up = _scaled(wide_a[:, :width].T, d), _scaled(wide_b[: b.shape[-1]].T, b)
        for path, part in split_outputs(module, up, base).items():
            vera |= {f"{path}/d": d, f"{path}/b": b}
            low_rank |= {f"{path}/a": a, f"{path}/b": part}
        same = same and len(module.weight) == 1
        _take(tensors, module, base, "vera_lambda_d", "vera_lambda_b")
    if same:
        adapt = {"rank": rank, "projection_seed": seed, "select": _select(vera)}
        return [Stage("vera", {"_target_": "adaptlab.adapt.vera", **adapt}, vera)]
    adapt = {"rank": rank, "alpha": float(rank), "select": _select(low_rank)}
    return [Stage("lora", {"_target_": "adaptlab.adapt.lora", **adapt}, low_rank)]


def _scaled(matrix: np.ndarray, factors: Any) -> Any:
    """Return matrix · diag(factors), for each layer of the factors `[*L, F]`."""
    lead = range(factors.ndim - 1)
    return jnp.expand_dims(jnp.asarray(matrix), lead) * factors[..., None, :]


def _read_ia3(config: Mapping[str, Any], tensors: Flat, base: Flat, modules: Sequence[Module]) -> list[Stage]:
    """IA3: δ is PEFT's factor less one."""
    ends: dict[str, list[str]] = {"output": [], "input": []}
    delta = {}
    for module in modules:
        factors: Any = stack_layers(module, ".ia3_l", tensors, base, jnp.ones_like)
        if factors is None:
            continue
        if factors.shape[-2] == 1:
            parts, end = dict.fromkeys(module.weight, factors[..., 0, :]), "input"
        else:
            parts, end = split_outputs(module, factors[..., 0], base), "output"
        delta |= {f"{path}/{end}": x - 1.0 for path, x in dict[str, Any](parts).items()}
        ends[end] += [re.escape(path) for path in parts]
        _take(tensors, module, base, "ia3_l")
    return [Stage("ia3", {"_target_": "adaptlab.adapt.ia3", **{k: v or None for k, v in ends.items()}}, delta)]


def _read_prefix(config: Mapping[str, Any], tensors: Flat, base: Flat, modules: Sequence[Module]) -> list[Stage]:
    rows = jnp.asarray(tensors.pop("prompt_embeddings"), jnp.float32)
    heads, depth = config["num_attention_heads"], config["num_layers"]
    both = rows.reshape(rows.shape[0], depth, 2, heads, -1).transpose(2, 1, 0, 3, 4)
    slot = "layers/attention/prefix"
    adapt = {"_target_": "adaptlab.adapt.prefix", "length": rows.shape[0]}
    return [Stage("prefix", adapt, {f"{slot}/keys": both[0], f"{slot}/values": both[1]})]


def _read_prompt(config: Mapping[str, Any], tensors: Flat, base: Flat, modules: Sequence[Module]) -> list[Stage]:
    """Prompt tuning; of p-tuning PEFT stores the prompt and not the network that made it."""
    if config.get("task_type") == "SEQ_CLS":
        raise ValueError(
            "In front of a classifier, PEFT's model pools the prompt's first position and adaptlab's the text's first "
            "token: they are two models, and nothing can be exchanged. Prefix tuning is the same in both."
        )
    rows = jnp.asarray(tensors.pop("prompt_embeddings"), jnp.float32)
    adapt = {"_target_": "adaptlab.adapt.prompt", "length": rows.shape[0], "init": "random"}
    return [Stage("prompt", adapt, {"prompt/embeddings": rows})]


def _read_norms(config: Mapping[str, Any], tensors: Flat, base: Flat, modules: Sequence[Module]) -> list[Stage]:
    named = {name.replace(".ln_tuning_layers", ""): name for name in tensors if ".ln_tuning_layers." in name}
    delta = {}
    for module in modules:
        own = {name: tensors[named[name]] for name in whole(module, base) if name in named}
        delta |= unwhole(module, own, base)
        for name in own:
            del tensors[named[name]]
    return [Stage("layer_norm", {"_target_": "adaptlab.adapt.layer_norm", "select": _escaped(delta)}, delta)]


def _read_rows(config: Mapping[str, Any], tensors: Flat, base: Flat, modules: Sequence[Module]) -> list[Stage]:
    tables = [m for m in modules if f"{m.name}.trainable_tokens_delta" in tensors]
    if len(tables) != 1 or not tables[0].embedding:
        raise ValueError(f"textual_inversion trains rows of one table, and the adapter of {[m.name for m in tables]}.")
    (table,) = tables
    rows = jnp.asarray(tensors.pop(f"{table.name}.trainable_tokens_delta"), jnp.float32)
    if "head/kernel" not in base:
        tensors.pop("lm_head.trainable_tokens_delta", None)  # the same rows: the head is the table
    (path,) = table.weight
    adapt = {"ids": list(config["token_indices"]), "embedding": re.escape(path)}
    return [Stage("tokens", {"_target_": "adaptlab.adapt.textual_inversion", **adapt}, {f"{path}/rows": rows})]


READERS = {
    "LORA": _read_lora,
    "ADALORA": _read_adalora,
    "VERA": _read_vera,
    "IA3": _read_ia3,
    "PREFIX_TUNING": _read_prefix,
    "PROMPT_TUNING": _read_prompt,
    "P_TUNING": _read_prompt,
    "LN_TUNING": _read_norms,
    "TRAINABLE_TOKENS": _read_rows,
}


def read_saved(tensors: Flat, base: Flat, modules: Sequence[Module]) -> list[Stage]:
    """Read what PEFT calls modules_to_save; those that are as the base has them (an untrained head) make no stage."""
    delta = {}
    for module in modules:
        own = {name: tensors.pop(name) for name in list(whole(module, base)) if name in tensors}
        found = unwhole(module, own, base)
        if any(not _equal(x, base[path]) for path, x in found.items()):
            delta |= found
    return [Stage("saved", {"_target_": "adaptlab.adapt.selected", "select": _escaped(delta)}, delta)] if delta else []


def _equal(x: Any, w: Any) -> bool:
    return not isinstance(x, Tracer) and np.array_equal(np.asarray(x), np.asarray(leaf.dense(w)))


def _refuse(config: Mapping[str, Any], *names: str) -> None:
    if odd := {name: config[name] for name in names if config.get(name)}:
        raise ValueError(f"adapter_config.json asks for {odd}, which adaptlab does not have.")


def _take(tensors: Flat, module: Module, base: Flat, *kinds: str) -> None:
    for name in layer_names(module, base):
        for kind in kinds:
            tensors.pop(f"{name}.{kind}", None)


def _select(delta: Flat) -> list[str]:
    """Patterns of the weights' paths below which a delta stands."""
    return _escaped(path.rpartition("/")[0] for path in delta)


def _escaped(paths: Any) -> list[str]:
    return [re.escape(path) for path in dict.fromkeys(paths)]
