"""Mixtral: what it shares with transformers, in numbers and files, how it is adapted, and what it costs."""

import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from adaptlab import tree
from adaptlab.adapt import count_trained, full, load_delta, lora, materialize, save_delta, selected
from adaptlab.adapt.peft import to_peft
from adaptlab.adapt.peft_layout import Checkpoint
from adaptlab.flops import count_flops
from adaptlab.models import MixtralShape, from_shape, language_modelling, mixtral, pretrained, save_hf
from adaptlab.models.llama_family import LLAMA
from adaptlab.models.moe import load_balancing_loss
from adaptlab.models.names import hf_names
from adaptlab.source import local
from adaptlab.train import make_objective
from tests.golden import families
from tests.laws.table import scattered, text_batch
from tests.models.mixtures import MODELS, SHAPE, TOKENS, E, K, T, base

GOLDEN = families.HOME / "tiny_mixtral"
STORED = MixtralShape(40, width=16, depth=2, heads=4, kv_heads=2, head_width=4, ffn_width=12, experts=4, active=2)


# transformers -----------------------------------------------------------------------------------------------------


def ours(folder: Path, arrays: dict[str, np.ndarray], **options: Any) -> dict[str, np.ndarray]:
    """What `families.outputs` returns, by adaptlab from the folder that transformers wrote."""
    read = pretrained(local(folder), **options)
    tokens, real = (jnp.asarray(arrays[key], jnp.int32) for key in ("input_ids", "attention_mask"))

    @jax.jit
    def run(weights: Any) -> Any:
        logits = read.model.apply(weights, tokens, segments=real)
        found = read.model.intermediates(weights, tokens, segments=real, kinds=("router", "chosen"))
        balance = load_balancing_loss(found["router"], found["chosen"], real.astype(jnp.float32))
        return {"logits": logits, "router": found["router"], "balance": balance}

    return run(read.load())


def assert_same(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    """Equal within 1e-5, relative to the largest value; what padding makes is nobody's."""
    real = wanted["attention_mask"] > 0
    assert not real.all()
    for key, own, theirs in (
        ("logits", got["logits"][real], wanted["logits"][real]),
        ("router", got["router"][:, real], wanted["router"][:, real]),
        ("balance", got["balance"], wanted["balance"]),
    ):
        np.testing.assert_allclose(own, theirs, rtol=0, atol=1e-5 * np.abs(theirs).max(), err_msg=key)


def test_a_tiny_mixtral_computes_what_transformers_stored():
    golden = dict(np.load(GOLDEN / "reference.npz"))
    assert_same(ours(GOLDEN, golden), golden)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")  # theirs
def test_a_tiny_mixtral_computes_what_transformers_computes_here_and_now(tmp_path: Path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = families.build("tiny_mixtral")
        arrays = families.inputs("tiny_mixtral", rows=5, length=11)
        wanted = families.outputs(model, arrays) | arrays
        model.save_pretrained(tmp_path)
    assert_same(ours(tmp_path, arrays), wanted)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")  # theirs
def test_transformers_reads_a_mixtral_that_we_save(tmp_path: Path):
    from transformers import AutoModelForCausalLM

    save_hf(tmp_path, STORED, pretrained(local(GOLDEN)).load(), context=64)
    model, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True, output_router_logits=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    golden = dict(np.load(GOLDEN / "reference.npz"))
    arrays = {key: golden[key] for key in ("input_ids", "attention_mask")}
    assert_same(families.outputs(model.eval(), arrays), golden)


def test_what_we_save_has_the_names_and_values_of_what_was_read(tmp_path: Path):
    read = pretrained(local(GOLDEN)).load()
    save_hf(tmp_path, STORED, read, context=64)
    got, wanted = (load_file(folder / "model.safetensors") for folder in (tmp_path, GOLDEN))
    assert got.keys() == wanted.keys()
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in got
    for key, x in wanted.items():
        np.testing.assert_array_equal(got[key], x, err_msg=key)
    again = pretrained(local(tmp_path))
    assert (again.context, tree.digest(again.load())) == (64, tree.digest(read))


def test_a_missing_expert_is_named(tmp_path: Path):
    config = json.loads((GOLDEN / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_local_experts": 5}))
    (tmp_path / "model.safetensors").write_bytes((GOLDEN / "model.safetensors").read_bytes())
    with pytest.raises(ValueError, match=r"- model\.layers\.1\.block_sparse_moe\.experts\.4\.w3\.weight .*missing"):
        pretrained(local(tmp_path)).load()


@pytest.mark.parametrize("change", [{"sliding_window": 4096}, {"router_jitter_noise": 0.1}, {"hidden_act": "gelu"}])
def test_what_our_mixtral_does_not_have_is_an_error(change: dict[str, Any], tmp_path: Path):
    config = json.loads((GOLDEN / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ValueError, match=next(iter(change))):
        pretrained(local(tmp_path))


def test_a_gguf_file_of_experts_is_refused():
    assert LLAMA.read_gguf is not None
    with pytest.raises(ValueError, match=r"expert_count=8.*Hugging Face folder"):
        LLAMA.read_gguf(lambda key, default=None: {"llama.expert_count": 8}.get(key, default), {})


# Adaptation and cost ----------------------------------------------------------------------------------------------


def test_lora_leaves_the_router_unless_it_is_selected_and_counts_each_expert():
    params, rank, (D, F) = base(), 2, (SHAPE.width, SHAPE.ffn_width)
    experts = lora(rank, select="layers/feed_forward/.*/kernel")
    assert count_trained(experts, params, experts.init(jax.random.key(0), params)) == SHAPE.depth * E * 3 * rank * (
        D + F
    )
    paths = tree.flatten(lora(rank).init(jax.random.key(0), params))
    assert "layers/feed_forward/up/kernel/a" in paths
    assert not any("router" in path for path in paths)
    router = lora(rank, select="layers/feed_forward/router")
    assert count_trained(router, params, router.init(jax.random.key(0), params)) == SHAPE.depth * rank * (D + E)
    assert "layers/feed_forward/router" in tree.flatten(full().init(jax.random.key(0), params))
    assert list(tree.flatten(selected(".*/router").init(jax.random.key(0), params))) == ["layers/feed_forward/router"]


def test_adapted_experts_have_a_symmetric_hessian_and_are_the_merged_ones_in_every_member_of_a_sweep():
    params, batch = base(), text_batch(0)
    adaptation = lora(2, select="layers/feed_forward/(gate/kernel|router)")
    objective = make_objective(language_modelling(MODELS[1.0], balance=0.1), adaptation)
    deltas = [scattered(adaptation.init(jax.random.key(1), params), seed, 0.1) for seed in range(2)]
    u, v = (scattered(jax.tree.map(jnp.zeros_like, deltas[0]), seed) for seed in (2, 3))

    def value(delta: Any) -> jax.Array:
        return objective(delta, params, batch, jax.random.key(0)).value

    def both(delta: Any) -> Any:
        gradient, hu = jax.jvp(jax.grad(value), (delta,), (u,))
        merged = materialize(adaptation.bind(params, delta))
        plain = language_modelling(MODELS[1.0], balance=0.1)(merged, batch, jax.random.key(0)).value
        return (
            gradient,
            hu,
            tree.dot(v, hu),
            tree.dot(u, jax.jvp(jax.grad(value), (delta,), (v,))[1]),
            plain - value(delta),
        )

    stacked = jax.tree.map(lambda *x: jnp.stack(x), *deltas)
    gradient, hu, vhu, uhv, difference = jax.jit(jax.vmap(both))(stacked)
    np.testing.assert_allclose(vhu, uhv, rtol=0, atol=1e-5 * float(tree.norm(v) * tree.norm(hu)))
    np.testing.assert_allclose(difference, 0, atol=1e-5)
    for path, g in tree.flatten(gradient).items():
        assert all(np.any(one != 0, axis=(-1, -2)).all() for one in np.asarray(g)), path  # each expert of each layer


def test_adapters_of_attention_go_to_peft_and_those_of_experts_are_refused(tmp_path: Path):
    params = jax.device_put(pretrained(local(GOLDEN)).load())
    checkpoint = Checkpoint(*hf_names(local(GOLDEN), params))

    def written(select: str) -> Any:
        delta, file = lora(2, select=select).init(jax.random.key(0), params), tmp_path / "delta.safetensors"
        save_delta(file, delta, adapt={"_target_": "adaptlab.adapt.lora", "rank": 2, "select": select}, base="0" * 64)
        return to_peft(load_delta(file), params, checkpoint)

    assert written("layers/attention/query/kernel")[0]["target_modules"] == ["q_proj"]
    with pytest.raises(ValueError, match=r"no modules for \['layers/feed_forward/up/kernel'\] \(experts"):
        written("layers/feed_forward/up/kernel")


def forward_flops(capacity_factor: float | None) -> float:
    model = mixtral(SHAPE, capacity_factor=capacity_factor)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return count_flops(model.apply, shapes, TOKENS)


@pytest.mark.parametrize("factor", [None, 1.0, 1.5])
def test_flops_are_those_of_all_experts_or_of_the_slots(factor: float | None):
    s, tokens = SHAPE, TOKENS.size
    inner = s.heads * s.head_width
    attention = 2 * s.width * (2 * inner + 2 * s.kv_heads * s.head_width) + 2 * 2 * T * inner
    experts = E if factor is None else factor * K
    layer = attention + 2 * s.width * E + experts * 3 * 2 * s.width * s.ffn_width
    assert forward_flops(factor) == tokens * (s.depth * layer + 2 * s.width * s.vocab_size)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MixtralShape(24, 16, 2, 4, 2, 6, 20, experts=2, active=3), r"active=3 of experts=2.*1 to 2"),
        (lambda: MixtralShape(24, 16, 2, 4, 3, 6, 20), r"heads=4 is not a multiple of kv_heads=3"),
        (lambda: mixtral(SHAPE, capacity_factor=0.0), r"capacity_factor=0.0 leaves no room"),
        (lambda: from_shape(SHAPE.dense(), capacity_factor=1.0), r"capacity_factor=1.0: a 'llama' has no experts"),
    ],
)
def test_impossible_mixtures_are_errors_when_they_are_made(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()
