"""From a bound model to PEFT's tensors: one writer for each kind of node.

A writer takes `{path: node}`, the base `{path: weight}` and the checkpoint's names, and returns what
`adapter_config.json` says of the method and `{name: tensor}`. PEFT multiplies from the left, y = B A x, so its A and B
are the transposes of ours.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np

from adaptlab import leaf
from adaptlab.adapt.peft_layout import (
    PREFIX,
    Checkpoint,
    Module,
    holding,
    modules_of,
    shape_of,
    spread,
    target_names,
)
from adaptlab.leaf.random import uniform_matrix

__all__ = ["write_adalora", "write_ia3", "write_lora", "write_prefix", "write_prompt", "write_rows", "write_vera"]

Written = tuple[dict[str, Any], dict[str, np.ndarray]]
Flat = Mapping[str, Any]

_RANKNUM = 1e-5  # PEFT divides AdaLoRA's alpha by the rank plus this
_HEAD = "lm_head"
_SAVED_WITH_BASE = ("embed_tokens", _HEAD)  # where one of these is adapted, PEFT saves the weights below it too


def write_lora(nodes: Flat, base: Flat, checkpoint: Checkpoint, *, rank_stabilised: bool = False) -> Written:
    """LoRA and DoRA; a module of several matrices gets its ranks one after another, B block by block.

    y_i = x W_i + s x A_i B_i for the parts i of a fused module is x W + s x [A_1 A_2 …] diag(B_1, B_2, …) exactly.
    """
    modules = holding(modules_of(checkpoint, base), nodes)
    decomposed, tied = {isinstance(node, leaf.Decomposed) for node in nodes.values()}, _tied(checkpoint, base)
    if len(decomposed) > 1:
        raise ValueError("PEFT's use_dora holds for all of an adapter: export LoRA and DoRA as two adapters.")
    tensors, ranks, alphas = {}, {}, {}
    for module in modules:
        a, b, scale = _side_by_side(module, nodes, base)
        ranks[module] = rank = a.shape[-1]
        alphas[module] = _number(scale, rank**0.5 if rank_stabilised else rank)
        kinds = ("lora_embedding_A", "lora_embedding_B") if module.embedding else ("lora_A.weight", "lora_B.weight")
        tensors |= _stored(module, {kinds[0]: a.swapaxes(-1, -2), kinds[1]: b.swapaxes(-1, -2)})
        if decomposed == {True}:
            tensors |= _stored(module, {"lora_magnitude_vector": _magnitude(module, nodes, base)})
        if module.embedding and tied:
            # The head that is the table reads it as it is adapted: to PEFT a second module, with A and B exchanged.
            tensors |= {f"{PREFIX}{_HEAD}.lora_A.weight": b, f"{PREFIX}{_HEAD}.lora_B.weight": a}
    ends = [m for m in modules if m.embedding or m.name == _HEAD]
    if any(m.name.endswith(_SAVED_WITH_BASE) for m in ends) or (ends and tied):
        names = {m.name: m for m in ends} | ({_HEAD: ends[0]} if tied else {})
        for name, module in names.items():
            w = np.asarray(leaf.dense(base[module.weight[0]]))
            tensors[f"{PREFIX}{name}.base_layer.weight"] = w.T if module.transpose else w
    rank, alpha = Counter((ranks[m], alphas[m]) for m in modules).most_common(1)[0][0]

    def pattern(values: dict[Module, Any], usual: Any) -> dict[str, Any]:
        found = {}
        for module, x in values.items():
            if x != usual:
                found |= dict.fromkeys(target_names([module], modules, base), x)
                found |= {_HEAD: x} if module.embedding and tied else {}
        return found

    targets = _targets(modules, base, checkpoint)
    # PEFT ties the head's adapter to that of a table of this name alone; of others, it is named as a target.
    tie = tied and any(m.embedding and m.name.endswith(_SAVED_WITH_BASE) for m in modules)
    if tied and ends and not tie:
        targets["target_modules"] = [*targets["target_modules"], _HEAD]
    config = {
        "peft_type": "LORA",
        "r": rank,
        "lora_alpha": alpha,
        "rank_pattern": pattern(ranks, rank),
        "alpha_pattern": pattern(alphas, alpha),
        "use_rslora": rank_stabilised,
        "use_dora": decomposed == {True},
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "ensure_weight_tying": tie,
    }
    return config | targets, tensors


def write_adalora(nodes: Flat, base: Flat, checkpoint: Checkpoint, parts: Mapping[str, Flat]) -> Written:
    """AdaLoRA: A = Qᵀ, E = λ, B = Pᵀ in PEFT's order of factors, filled up with zeros to one rank.

    PEFT's scale is lora_alpha / (init_r + 1e-5), so lora_alpha is a little more than alpha.

    Args:
      nodes: the `LowRank`s that it binds.
      base: the base.
      checkpoint: its names.
      parts: for each path, the delta's p, lambda and q.
    """
    modules = holding(modules_of(checkpoint, base), nodes)
    joined = {}
    for module in modules:
        low = {path: leaf.LowRank(None, parts[path]["p"], parts[path]["q"], nodes[path].scale)
               for path in module.weight if path in nodes}  # fmt: skip
        a, b, scale = _side_by_side(module, low, base)
        values = np.concatenate([np.asarray(parts[path]["lambda"]) for path in low], axis=-1)
        joined[module] = (a, values, b, scale)
    rank = max(values.shape[-1] for _, values, _, _ in joined.values())
    scales = {scale for *_, scale in joined.values()}
    if len(scales) > 1:
        raise ValueError(f"PEFT keeps one alpha for all of AdaLoRA, and here are the scales {sorted(scales)}.")
    (scale,) = scales
    tensors = {}
    for module, (a, values, b, _) in joined.items():
        grown = rank - values.shape[-1]
        a, values = (np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, grown)]) for x in (a, values))
        b = np.pad(b, [(0, 0)] * (b.ndim - 2) + [(0, grown), (0, 0)])
        kinds = {"lora_A": a.swapaxes(-1, -2), "lora_B": b.swapaxes(-1, -2), "lora_E": values[..., None]}
        tensors |= _stored(module, kinds)
    alpha = _number(scale, rank) * (rank + _RANKNUM) / rank
    # Ranks were allocated here: PEFT gets no more of them to drop.
    schedule = {"init_r": rank, "target_r": rank, "tinit": 0, "tfinal": 0, "total_step": 1}
    config = {"peft_type": "ADALORA", "lora_alpha": alpha, "rank_pattern": None, "lora_dropout": 0.0, "bias": "none"}
    return config | schedule | _targets(modules, base, checkpoint), tensors


def write_vera(nodes: Flat, base: Flat, checkpoint: Checkpoint) -> Written:
    """VeRA, with the two random matrices that all modules share: here they are computed from a seed, and stored."""
    modules = holding(modules_of(checkpoint, base), nodes)
    if fused := [m.name for m in modules if len(m.weight) > 1]:
        raise ValueError(
            f"PEFT's VeRA has one vector for each of the fused modules {fused}, and adaptlab one for each matrix in "
            f"them: select others, e.g. 'layers/(attention/out|feed_forward/.*)/kernel'."
        )
    first = next(iter(nodes.values()))
    shapes = [shape_of(path, base)[-2:] for path in nodes]
    rank, (widest_in, widest_out) = first.d.shape[-1], (max(sizes) for sizes in zip(*shapes, strict=True))
    shared = {"base_model.vera_A": uniform_matrix(first.seed, (widest_in, rank), first.bounds[0]).T}
    shared["base_model.vera_B"] = uniform_matrix(first.seed + 1, (widest_out, rank), first.bounds[1])
    tensors = {name: np.asarray(x) for name, x in shared.items()}
    for module in modules:
        node = nodes[module.weight[0]]
        tensors |= _stored(module, {"vera_lambda_d": node.d, "vera_lambda_b": node.b})
    config = {"peft_type": "VERA", "r": rank, "projection_prng_key": first.seed, "save_projection": True}
    return config | {"vera_dropout": 0.0, "bias": "none"} | _targets(modules, base, checkpoint), tensors


def write_ia3(nodes: Flat, base: Flat, checkpoint: Checkpoint) -> Written:
    """IA3: factors of outputs `[F, 1]`, and of inputs `[1, D]` of what PEFT calls feed-forward modules."""
    modules = holding(modules_of(checkpoint, base), nodes)
    tensors, inputs = {}, []
    for module in modules:
        own = [nodes.get(path) for path in module.weight]
        at_input = [node for node in own if node is not None and node.input is not None]
        if at_input and (len(own) > 1 or at_input[0].output is not None):
            raise ValueError(
                f"PEFT's IA3 scales either the inputs of {module.name} or its outputs, of all it holds: narrow "
                f"`input` or `output`."
            )
        if at_input:
            inputs.append(module)
            tensors |= _stored(module, {"ia3_l": np.asarray(at_input[0].input)[..., None, :]})
            continue
        widths = [shape_of(path, base) for path in module.weight]
        factors = [
            np.ones((*shape[:-2], shape[-1]), np.float32) if node is None else np.asarray(node.output)
            for node, shape in zip(own, widths, strict=True)
        ]
        tensors |= _stored(module, {"ia3_l": np.concatenate(factors, axis=-1)[..., None]})
    names = target_names(inputs, modules_of(checkpoint), base)
    config = {"peft_type": "IA3", "feedforward_modules": names} | _targets(modules, base, checkpoint)
    if inputs and len(inputs) < len(modules):
        outputs = [m for m in modules if m not in inputs]
        config["target_modules"] = [*target_names(outputs, modules_of(checkpoint), base), *names]
    return config, tensors


def write_prefix(nodes: Flat, base: Flat, checkpoint: Checkpoint) -> Written:
    """Prefix tuning: for each position the keys and values of all layers in one row, key before value."""
    ((_, node),) = nodes.items()
    keys, values = (np.asarray(x) for x in node.keys_values())
    depth, length, heads, width = keys.shape
    rows = np.stack([keys, values], axis=1).transpose(2, 0, 1, 3, 4).reshape(length, -1)
    config = {
        "peft_type": "PREFIX_TUNING",
        "num_virtual_tokens": length,
        "token_dim": heads * width,
        "num_attention_heads": heads,
        "num_layers": depth,
        "num_transformer_submodules": 1,
        "encoder_hidden_size": heads * width,
        "prefix_projection": False,
    }
    return config, {"prompt_embeddings": np.ascontiguousarray(rows)}


def write_prompt(nodes: Flat, base: Flat, checkpoint: Checkpoint, made_by: Mapping[str, Any] | None = None) -> Written:
    """Prompt tuning, and p-tuning by the prompt that its network makes.

    Args:
      nodes: the one `Prompt`.
      base: the base.
      checkpoint: its names.
      made_by: the config of `p_tuning`, or None.
    """
    if checkpoint.task == "SEQ_CLS":
        raise ValueError(
            "In front of a classifier, PEFT's model pools the prompt's first position and adaptlab's the text's first "
            "token: they are two models, and nothing can be exchanged. Choose prefix(), which is the same in both."
        )
    ((_, node),) = nodes.items()
    rows = np.asarray(node.rows())
    config: dict[str, Any] = {
        "peft_type": "PROMPT_TUNING" if made_by is None else "P_TUNING",
        "num_virtual_tokens": rows.shape[0],
        "token_dim": rows.shape[1],
        "num_transformer_submodules": 1,
    }
    if made_by is None:
        config["prompt_tuning_init"] = "RANDOM"
    else:
        config["encoder_reparameterization_type"] = made_by.get("encoder", "mlp").upper()
        config["encoder_hidden_size"] = made_by.get("width") or rows.shape[1]
        config["encoder_num_layers"] = made_by.get("layers", 2)
    return config, {"prompt_embeddings": rows}


def write_rows(nodes: Flat, base: Flat, checkpoint: Checkpoint) -> Written:
    """Trainable tokens: the rows themselves, in a model whose head is the table under the head's name too."""
    ((path, node),) = nodes.items()
    (module,) = holding(modules_of(checkpoint, base), [path])
    if max(node.ids) >= shape_of(path, base)[0]:
        raise ValueError(
            f"PEFT's trainable tokens are tokens that the base has, and {sorted(node.ids)} has new ones: lengthen the "
            f"base's table first, and train the new tokens by their `ids`."
        )
    rows = np.asarray(node.rows)
    names = [module.name, _HEAD] if _tied(checkpoint, base) else [module.name]
    config = {"peft_type": "TRAINABLE_TOKENS", "token_indices": list(node.ids), "target_modules": [module.name]}
    return config, {f"{PREFIX}{name}.trainable_tokens_delta": rows for name in names}


def _targets(modules: list[Module], base: Flat, checkpoint: Checkpoint) -> dict[str, Any]:
    linear = [m for m in modules if not m.embedding]
    names = target_names(modules, modules_of(checkpoint), base)
    return {"target_modules": names, "fan_in_fan_out": bool(linear) and not any(m.transpose for m in linear)}


def _stored(module: Module, kinds: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {
        f"{PREFIX}{name}.{kind}": np.asarray(x) for kind, all_x in kinds.items() for name, x in spread(module, all_x)
    }


def _tied(checkpoint: Checkpoint, base: Flat) -> bool:
    return checkpoint.task == "CAUSAL_LM" and "head/kernel" not in base


def _side_by_side(module: Module, nodes: Flat, base: Flat) -> tuple[np.ndarray, np.ndarray, float]:
    """A `[*L, D, R]`, B `[*L, R, F]` and the scale of all side paths in a module.

    PEFT's scale is one number: where layers or parts have their own, the largest, and the rest goes into B.
    """
    low = {path: _low_rank(path, nodes[path]) for path in module.weight if path in nodes}
    scale = float(max(np.max(np.asarray(one.scale)) for one in low.values()))
    a = np.concatenate([np.asarray(one.a) for one in low.values()], axis=-1)
    columns, above = [], 0
    for path in module.weight:
        if path not in low:
            columns.append(np.zeros((*a.shape[:-2], a.shape[-1], shape_of(path, base)[-1]), np.float32))
            continue
        b, own = np.asarray(low[path].b), np.asarray(low[path].scale)
        b = b if np.all(own == np.float32(scale)) else b * (own / np.float32(scale))[..., None, None]
        below = a.shape[-1] - above - b.shape[-2]
        columns.append(np.pad(b, [(0, 0)] * (b.ndim - 2) + [(above, below), (0, 0)]))
        above += b.shape[-2]
    return a, np.concatenate(columns, axis=-1), scale


def _low_rank(path: str, node: Any) -> leaf.LowRank:
    node = node.v if isinstance(node, leaf.Decomposed) else node
    if isinstance(node, leaf.LowRank) and not isinstance(node.w, leaf.LowRank | leaf.Decomposed | leaf.Scaled):
        return node
    raise ValueError(
        f"{path} has one adaptation on top of another, and PEFT keeps one per module: add low-rank ones with "
        f"`python -m scripts.merge space=factors` first."
    )


def _magnitude(module: Module, nodes: Flat, base: Flat) -> np.ndarray:
    def lengths(path: str) -> np.ndarray:
        if path in nodes:
            return np.asarray(nodes[path].magnitude)
        return np.linalg.norm(np.asarray(leaf.dense(base[path]), np.float32), axis=-2)

    if module.embedding:
        raise ValueError(f"{module.name}: DoRA of a table is not exchanged with PEFT; select kernels.")
    return np.concatenate([lengths(path) for path in module.weight], axis=-1)


def _number(scale: float, rank: float) -> float:
    """scale · rank as the shortest decimal that gives the scale back in float32; 16 rather than 16.0000004."""
    for digits in range(1, 18):
        alpha = float(f"{scale * rank:.{digits}g}")
        if np.float32(alpha / rank) == np.float32(scale):
            return int(alpha) if alpha.is_integer() else alpha
    return scale * rank
