"""IA3, prefix tuning, prompt tuning and p-tuning compute what PEFT computes (`tests.golden.peft_slots`)."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import tree
from adaptlab.adapt import ia3, p_tuning, prefix, prompt
from adaptlab.models import LlamaShape, llama

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "peft_slots.npz")
MODEL = llama(LlamaShape(32, 16, 2, heads=4, kv_heads=2, head_width=4, ffn_width=20, tied=False))
SLOTS = MODEL.slots()
L, P, G, K, W = 2, 3, 2, 4, 5
NAMES = {
    "attention_norm/scale": "input_layernorm",
    "feed_forward_norm/scale": "post_attention_layernorm",
    **{f"attention/{ours}/kernel": f"self_attn.{ours[0]}_proj" for ours in ("query", "key", "value", "out")},
    **{f"feed_forward/{name}/kernel": f"mlp.{name}_proj" for name in ("gate", "up", "down")},
}


def stacked(name: str) -> np.ndarray:
    return np.stack([GOLDEN[name.format(i)] for i in range(L)])


def base() -> Any:
    flat = {f"layers/{ours}": stacked(f"base/model.layers.{{}}.{theirs}.weight") for ours, theirs in NAMES.items()}
    flat = {path: x.swapaxes(1, 2) if x.ndim == 3 else x for path, x in flat.items()}
    flat["embed/embedding"] = GOLDEN["base/model.embed_tokens.weight"]
    flat["norm/scale"] = GOLDEN["base/model.norm.weight"]
    flat["head/kernel"] = GOLDEN["base/lm_head.weight"].T
    return tree.unflatten(flat)


def ia3_delta() -> dict[str, np.ndarray]:
    theirs = {"attention/key/kernel/output": "self_attn.k_proj", "attention/value/kernel/output": "self_attn.v_proj"}
    theirs["feed_forward/down/kernel/input"] = "mlp.down_proj"
    return {
        f"layers/{path}": stacked(f"ia3/model.layers.{{}}.{name}.ia3_l").reshape(L, -1) - 1.0
        for path, name in theirs.items()
    }


def prefix_delta() -> dict[str, np.ndarray]:
    both = GOLDEN["prefix/embedding.weight"].reshape(P, L, 2, G, K).transpose(2, 1, 0, 3, 4)
    return {"layers/attention/prefix/keys": both[0], "layers/attention/prefix/values": both[1]}


def prefix_network_delta() -> dict[str, np.ndarray]:
    return {
        "prefix/table": GOLDEN["prefix_network/embedding.weight"],
        "prefix/kernel": GOLDEN["prefix_network/transform.0.weight"].T,
        "prefix/bias": GOLDEN["prefix_network/transform.0.bias"],
        "layers/attention/prefix/kernel": np.moveaxis(
            GOLDEN["prefix_network/transform.2.weight"].reshape(L, 2, G, K, W), -1, 1
        ),
        "layers/attention/prefix/bias": GOLDEN["prefix_network/transform.2.bias"].reshape(L, 2, G, K),
    }


def dense_delta(method: str, numbers: tuple[int, ...]) -> dict[str, np.ndarray]:
    delta = {"prompt/table": GOLDEN[f"{method}/embedding.weight"]}
    for i, number in enumerate(numbers):
        delta[f"prompt/dense_{i}/kernel"] = GOLDEN[f"{method}/mlp_head.{number}.weight"].T
        delta[f"prompt/dense_{i}/bias"] = GOLDEN[f"{method}/mlp_head.{number}.bias"]
    return delta


def lstm_delta() -> dict[str, np.ndarray]:
    delta = dense_delta("p_tuning_lstm", (0, 2))
    for i in range(2):
        for direction, suffix in (("forward", ""), ("backward", "_reverse")):
            ours, theirs = f"prompt/{direction}_{i}", f"p_tuning_lstm/lstm_head.{{}}_l{i}{suffix}"
            delta[f"{ours}/kernel"] = GOLDEN[theirs.format("weight_ih")].T
            delta[f"{ours}/recurrent"] = GOLDEN[theirs.format("weight_hh")].T
            # PyTorch keeps two biases, of which only the sum matters.
            delta[f"{ours}/bias"] = GOLDEN[theirs.format("bias_ih")] + GOLDEN[theirs.format("bias_hh")]
    return delta


METHODS = {
    "ia3": (lambda: ia3(), ia3_delta),
    "prefix": (lambda: prefix(P, slots=SLOTS), prefix_delta),
    "prefix_network": (lambda: prefix(P, reparametrise=W, slots=SLOTS), prefix_network_delta),
    "prompt": (
        lambda: prompt(P, slots=SLOTS),
        lambda: {"prompt/embeddings": GOLDEN["prompt/embedding.weight"]},
    ),
    "p_tuning_mlp": (lambda: p_tuning(P, width=W, slots=SLOTS), lambda: dense_delta("p_tuning_mlp", (0, 2, 4))),
    "p_tuning_lstm": (lambda: p_tuning(P, width=W, encoder="lstm", slots=SLOTS), lstm_delta),
}


@pytest.mark.parametrize("method", METHODS)
def test_a_method_computes_what_peft_computes(method: str):
    make, delta = METHODS[method]
    tokens = jnp.asarray(GOLDEN["ids"])
    bound = make().bind(*jax.tree.map(jnp.asarray, (base(), tree.unflatten(delta()))))
    logits = MODEL.apply(bound, tokens)
    np.testing.assert_allclose(logits, GOLDEN[f"{method}/logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_trains_arrays_of_the_shapes_that_peft_trains(method: str):
    make, delta = METHODS[method]
    own = make().init(jax.random.key(0), base())
    assert {p: x.shape for p, x in tree.flatten(own).items()} == {p: x.shape for p, x in delta().items()}
