"""What adaptlab computes with the folders of `tests.golden.peft_folders`, in the form of its references."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from safetensors.numpy import load_file

from adaptlab import adapt, config, models, source, tree
from adaptlab.adapt import files, peft
from adaptlab.models.names import hf_names
from tests.golden import peft_folders

_LLAMA, _HEAD = "layers/(attention/(query|value)|feed_forward/down)/kernel", {"select": "classifier/.*"}
_LAYERS = "layers/.*/kernel"


def _call(factory: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"adaptlab.adapt.{factory}", **arguments}


def _with_head(factory: str, **arguments: Any) -> dict[str, Any]:
    return _call("chain", stages={"head": _call("selected", **_HEAD), "own": _call(factory, **arguments)})


EXPORTS: dict[str, dict[str, Any]] = {
    "llama-lora": _call("lora", rank=3, alpha=16.0, select=_LLAMA),
    "llama-rslora": _call("lora", rank=3, alpha=16.0, scaling="rank_stabilised"),
    "llama-lora_layer_ranks": _call("lora", rank=3, alpha=5.0, layer_ranks=[3, 1], select=_LLAMA),
    "llama-lora_embedding": _call("lora", rank=2, select=["embed/embedding", "head/kernel", "layers/attention/.*"]),
    "llama-lora_norms": _call(
        "chain", stages={"lora": _call("lora", rank=2, select=_LLAMA), "norms": _call("layer_norm")}
    ),
    "llama-two_loras": _call(
        "partition",
        parts={
            "layers/attention/.*": _call("lora", rank=2, alpha=3.0, select=".*"),
            "layers/feed_forward/.*": _call("lora", rank=3, alpha=7.0, select=".*"),
            ".*": _call("frozen"),
        },
    ),
    "llama-dora": _call("dora", rank=2, alpha=5.0, select=_LLAMA),
    "llama-pissa": _call("pissa", rank=2, alpha=3.0, select=_LLAMA),
    "llama-adalora": _call("adalora", rank=3, alpha=16.0, select=_LLAMA),
    "llama-vera": _call("vera", rank=4, select=_LLAMA, projection_seed=5),
    "llama-ia3": _call("ia3"),
    "llama-prefix": _call("prefix", length=3),
    "llama-prefix_network": _call("prefix", length=3, reparametrise=5),
    "llama-prompt": _call("prompt", length=3),
    "llama-p_tuning": _call("p_tuning", length=3, width=5, encoder="lstm"),
    "llama-layer_norm": _call("layer_norm"),
    "llama-tokens": _call("textual_inversion", ids=[1, 5]),
    "llama_tied-lora_embedding": _call("lora", rank=2, alpha=3.0, select=["embed/embedding", _LLAMA]),
    "llama_tied-tokens": _call("textual_inversion", ids=[1, 5]),
    "bert-lora": _with_head("lora", rank=2, alpha=3.0),
    "bert-dora": _with_head("dora", rank=2),
    "bert-adalora": _with_head("adalora", rank=2),
    "bert-vera": _with_head("vera", rank=4, select="layers/(attention|feed_forward)/(query|down)/kernel"),
    "bert-ia3": _with_head("ia3"),
    "bert-prefix": _with_head("prefix", length=3),
    "bert-layer_norm": _with_head("layer_norm"),
    "bert-tokens": _call("textual_inversion", ids=[1, 5]),
    "encoder-lora": _call("lora", rank=2),
    "encoder-prompt": _call("prompt", length=3),
    "gpt2-lora": _call("lora", rank=2, alpha=3.0),
    "gpt2-lora_query_value": _call("lora", rank=2, alpha=3.0, select="layers/attention/(query|value)/kernel"),
    "gpt2-rslora": _call("lora", rank=2, alpha=3.0, scaling="rank_stabilised"),
    "gpt2-lora_embedding": _call("lora", rank=2, alpha=3.0, select="embed/embedding"),
    "gpt2-dora": _call("dora", rank=2, select="layers/attention/(query|value)/kernel"),
    "gpt2-pissa": _call("pissa", rank=2, select="layers/.*/kernel"),
    "gpt2-adalora": _call("adalora", rank=2, alpha=3.0),
    "gpt2-vera": _call("vera", rank=4, select="layers/(attention/out|feed_forward/up)/kernel"),
    "gpt2-ia3": _call("ia3"),
    "gpt2-prefix": _call("prefix", length=3),
    "gpt2-prompt": _call("prompt", length=3),
    "gpt2-p_tuning": _call("p_tuning", length=3, width=5),
    "gpt2-layer_norm": _call("layer_norm"),
    "gpt2-tokens": _call("textual_inversion", ids=[1, 5]),
}
"""What adaptlab exports, by case; a prompt in front of a classifier is another model in PEFT."""


class Opened(NamedTuple):
    """A base of the folders: the model, its weights, and their names."""

    model: models.Model
    params: Any
    checkpoint: peft.Checkpoint

    @property
    def given(self) -> dict[str, Any]:
        return {"fresh": self.model.init, "slots": self.model.slots()}


def opened(folder: Path) -> Opened:
    """Open `base/<family>`."""
    head = {"classes": peft_folders.CLASSES, "pooling": "cls"} if folder.name == "bert" else {}
    read = models.pretrained(source.local(folder), **head)
    params = jax.tree.map(jnp.asarray, read.load())
    return Opened(read.model, params, peft.Checkpoint(*hf_names(source.local(folder), params), str(folder)))


def logits_of(base: Opened, params: Any, family: str, typed: bool = True) -> jax.Array:
    """Return the logits of bound params on the inputs of a family."""
    arrays = {name: jnp.asarray(x, jnp.int32) for name, x in peft_folders.inputs(family).items()}
    names = {"token_type_ids": "types", "attention_mask": "segments"}
    named = {names[name]: x for name, x in arrays.items() if name in names and (typed or name != "token_type_ids")}
    return base.model.apply(params, arrays["input_ids"], **named)


def drawn(base: Opened, adapt_node: dict[str, Any], seed: int = 0) -> files.SavedDelta:
    """Return a saved delta of an adaptation, with noise in all of its arrays."""
    adaptation = peft.built(adapt_node, **base.given)
    prepared = adapt.prepared(adaptation, base.params)
    rng = np.random.default_rng(seed)
    delta = jax.tree.map(
        lambda x: np.asarray(x) + 0.2 * rng.standard_normal(x.shape, np.float32),
        adaptation.init(jax.random.key(seed), prepared),
    )
    return files.SavedDelta(delta, config.validate(adapt_node), "", tree.digest(delta))


def logits_with(base: Opened, saved: files.SavedDelta, family: str, typed: bool = True) -> np.ndarray:
    """Return the logits of a base with a saved delta."""

    def run(params: Any, delta: Any) -> jax.Array:
        adaptation = peft.built(saved.adapt, **base.given)
        return logits_of(base, adaptation.bind(adapt.prepared(adaptation, params), delta), family, typed)

    return np.asarray(jax.jit(run)(base.params, saved.delta))


def computed(base: Opened, adapter: Path) -> dict[str, np.ndarray]:
    """Return logits, loss, and the gradients in the tensors of an adapter, by their names."""
    family, said = adapter.name.partition("-")[0], json.loads((adapter / peft.CONFIG).read_text())
    tensors = load_file(adapter / peft.WEIGHTS)
    constant = {n: x for n, x in tensors.items() if n.endswith(("base_layer.weight", "vera_A", "vera_B"))}
    targets = jnp.asarray(peft_folders.inputs(family)["targets"], jnp.int32)

    def loss(trained: dict[str, Any]) -> Any:
        node, delta = peft.from_peft(said, trained | constant, base.params, base.checkpoint)
        adaptation = peft.built(node, **base.given)
        params = adaptation.bind(adapt.prepared(adaptation, base.params), delta)
        logits = logits_of(base, params, family, typed=said["peft_type"] != "PROMPT_TUNING")
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, targets)), logits

    trained = {n: jnp.asarray(x) for n, x in tensors.items() if n not in constant}
    (value, logits), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(trained)
    found = {"logits": logits, "loss": value} | {f"gradient/{name}": x for name, x in gradients.items()}
    return {name: np.asarray(x) for name, x in found.items()}


def distances(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray], tied: bool = False) -> tuple[float, float]:
    """Return the largest differences of logits and of gradients, over the largest logit and gradient.

    Raises:
      ValueError: the gradients are of other arrays.
    """
    theirs = _together(theirs, tied)
    names = {name for name in theirs if name.startswith("gradient/")}
    # Of a tied head, only what the table has is read.
    shared = {name for name in ours if tied and "lm_head" in name}
    if odd := names ^ {name for name in ours if name.startswith("gradient/")} - shared:
        raise ValueError(f"Gradients of other arrays: {sorted(odd)[:5]}.")
    scale = max(np.abs(theirs[name]).max() for name in names)
    gradients = max(np.abs(ours[name] - theirs[name]).max() for name in names) / scale
    return float(np.abs(ours["logits"] - theirs["logits"]).max() / np.abs(theirs["logits"]).max()), float(gradients)


def _together(theirs: dict[str, np.ndarray], tied: bool) -> dict[str, np.ndarray]:
    """Add the gradients of a head that is the table to those of the table: PEFT has two adapters of one array."""
    (table,) = [name.rpartition(".")[0] for name in theirs if name.endswith("lora_embedding_A")] or [None]
    if not tied or table is None:
        return theirs
    first, second = (theirs[f"gradient/base_model.model.lm_head.lora_{kind}.weight"] for kind in "AB")
    sums = {f"{table}.lora_embedding_A": second.T, f"{table}.lora_embedding_B": first.T}
    return {n: x + sums.get(n, 0) for n, x in theirs.items() if "lm_head" not in n}
