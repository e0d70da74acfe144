"""Mixtral: what its experts compute, what it shares with transformers, and what its losses are."""

import functools
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
from adaptlab.models import (
    LlamaShape,
    MixtralShape,
    Model,
    from_shape,
    language_modelling,
    llama,
    mixtral,
    pretrained,
    save_hf,
)
from adaptlab.models.llama_family import LLAMA
from adaptlab.models.moe import capacity, load_balancing_loss, router_z_loss
from adaptlab.models.names import hf_names
from adaptlab.source import local
from adaptlab.train import make_objective
from tests.golden import families
from tests.laws.table import VOCABULARY, scattered, text_batch

GOLDEN = families.HOME / "tiny_mixtral"
STORED = MixtralShape(40, width=16, depth=2, heads=4, kv_heads=2, head_width=4, ffn_width=12, experts=4, active=2)
SHAPE = MixtralShape(VOCABULARY, width=16, depth=2, heads=4, kv_heads=2, head_width=6, ffn_width=20, experts=4)
T, E, K = 12, SHAPE.experts, SHAPE.active
MODELS = {factor: mixtral(SHAPE, capacity_factor=factor) for factor in (None, 2.0, 1.0)}
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, VOCABULARY, (2, T), np.int32))
KINDS = ("hidden", "router", "chosen", "dropped")


@pytest.fixture(scope="module")
def params() -> Any:
    shapes = jax.eval_shape(MODELS[None].init, jax.random.key(0))
    return scattered(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes), 0)


@pytest.fixture(scope="module")
def seen(params: Any) -> dict[Any, Any]:
    """`{capacity factor: (logits, intermediates)}`."""
    return {factor: looked(model, params) for factor, model in MODELS.items()}


@functools.partial(jax.jit, static_argnums=0)
def looked(model: Model, params: Any, tokens: Any = TOKENS) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The logits, and what the model records."""
    assert model.intermediates is not None
    return model.apply(params, tokens), model.intermediates(params, tokens, kinds=KINDS)


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


# What experts compute ---------------------------------------------------------------------------------------------


def by_hand(params: Any, x_BTD: np.ndarray, slots: int | None) -> tuple[np.ndarray, np.ndarray]:
    """The first layer's mixture in float64, token by token, and which share of its choices each token lost."""
    weights = {path: np.asarray(x[0], np.float64) for path, x in tree.flatten(params["layers"]["feed_forward"]).items()}
    y_BTD, dropped_BT = np.zeros_like(x_BTD), np.zeros(x_BTD.shape[:2])
    for b, x_TD in enumerate(x_BTD):
        taken = np.zeros(E, int)
        for t, x_D in enumerate(x_TD):
            logits_E = x_D @ weights["router"]
            chosen = np.argsort(-logits_E)[:K]
            gates = np.exp(logits_E[chosen]) / np.exp(logits_E[chosen]).sum()
            for e, gate in zip(chosen, gates, strict=True):
                taken[e] += 1
                if slots is not None and taken[e] > slots:
                    dropped_BT[b, t] += 1 / K
                    continue
                a_F = x_D @ weights["gate/kernel"][e]
                h_F = a_F / (1 + np.exp(-a_F)) * (x_D @ weights["up/kernel"][e])
                y_BTD[b, t] += gate * (h_F @ weights["down/kernel"][e])
    return y_BTD, dropped_BT


def first_layer_without_attention(params: Any, model: Model) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """What goes into the first mixture, what comes out, and what is recorded, for attention that adds nothing."""
    silent = tree.map_with_path(lambda p, x: jnp.zeros_like(x) if "attention/out" in p else x, params)
    _, found = looked(model, silent)
    before, after = np.asarray(found["hidden"][:2], np.float64)
    scale = np.asarray(params["layers"]["feed_forward_norm"]["scale"][0], np.float64)
    normal = before / np.sqrt(np.mean(before**2, -1, keepdims=True) + SHAPE.norm_eps) * scale
    return normal, after - before, found


@pytest.mark.parametrize("factor", [None, 1.0])
def test_a_mixture_is_the_gated_sum_of_the_chosen_experts_that_have_room(factor: float | None, params: Any):
    inputs, outputs, found = first_layer_without_attention(params, MODELS[factor])
    wanted, dropped = by_hand(params, inputs, None if factor is None else capacity(T, E, K, factor))
    np.testing.assert_allclose(outputs, wanted, rtol=0, atol=2e-5 * np.abs(wanted).max())
    np.testing.assert_allclose(found["dropped"][0], dropped, atol=1e-6)
    assert (dropped.mean() > 0.05) == (factor is not None)


def test_with_room_for_all_nothing_is_dropped_and_both_ways_agree(seen: dict[Any, Any]):
    assert capacity(T, E, K, E / K) == T
    assert not np.any(seen[2.0][1]["dropped"])
    size = np.abs(seen[None][0]).max()
    np.testing.assert_allclose(seen[2.0][0], seen[None][0], rtol=0, atol=1e-5 * size)
    assert np.abs(seen[1.0][0] - seen[None][0]).max() > 0.01 * size


def test_a_row_is_the_same_in_any_batch_though_tokens_are_dropped(params: Any, seen: dict[Any, Any]):
    alone = jax.jit(MODELS[1.0].apply)(params, TOKENS[1:])
    np.testing.assert_allclose(alone[0], seen[1.0][0][1], rtol=1e-5, atol=1e-5)


def test_what_is_dropped_does_not_depend_on_the_future(params: Any, seen: dict[Any, Any]):
    now = T - 2
    other = TOKENS.at[:, now:].set((TOKENS[:, now:] + 7) % VOCABULARY)
    logits, found = looked(MODELS[1.0], params, other)
    wanted, plain = seen[1.0]
    np.testing.assert_array_equal(found["dropped"][:, :, :now], plain["dropped"][:, :, :now])
    assert np.any(plain["dropped"][:, :, :now])
    np.testing.assert_allclose(logits[:, :now], wanted[:, :now], rtol=1e-5, atol=1e-5)
    assert np.abs(logits[:, now:] - wanted[:, now:]).max() > 0.1


@pytest.mark.slow
def test_how_layers_are_run_changes_nothing(params: Any, seen: dict[Any, Any]):
    model = mixtral(SHAPE, capacity_factor=1.0, remat="full", unroll=1)
    logits, found = looked(model, params)
    np.testing.assert_allclose(logits, seen[1.0][0], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["chosen"], seen[1.0][1]["chosen"])


def test_the_router_is_float32_in_a_model_that_computes_in_bfloat16():
    model = mixtral(SHAPE, dtype="bfloat16")
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    router = jax.eval_shape(lambda p: model.intermediates(p, TOKENS, kinds=("router", "hidden")), shapes)
    assert (router["router"].dtype, router["hidden"].dtype) == (jnp.float32, jnp.bfloat16)
    assert router["router"].shape == (SHAPE.depth, *TOKENS.shape, E)


# Losses -----------------------------------------------------------------------------------------------------------


def test_an_even_router_has_the_balance_of_its_choices_and_a_collapsed_one_that_of_all_experts():
    weights = jnp.ones((2, 8))
    chosen = jnp.stack([jnp.arange(16).reshape(1, 2, 8) % 4, (jnp.arange(16).reshape(1, 2, 8) + 1) % 4], -1)
    even = load_balancing_loss(jnp.zeros((1, 2, 8, 4)), chosen, weights)
    one = jnp.broadcast_to(50.0 * jnp.asarray([1.0, 0.9, 0, 0]), (1, 2, 8, 4))
    collapsed = load_balancing_loss(one, jnp.broadcast_to(jnp.arange(2), (1, 2, 8, 2)), weights)
    np.testing.assert_allclose([even, collapsed], [2.0, 4.0], rtol=1e-5)


def test_router_losses_are_means_over_the_tokens_that_count():
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, 2, 5, 4)).astype(np.float32)
    chosen = np.argsort(-logits, axis=-1)[..., :2].astype(np.int32)
    weights = (rng.random((2, 5)) < 0.6).astype(np.float32)
    assert 0 < weights.sum() < 10
    p = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    kept = np.broadcast_to(weights > 0, (3, 2, 5))
    share = np.array([np.mean(np.sum(chosen[kept] == e, axis=-1)) for e in range(4)])
    got = load_balancing_loss(jnp.asarray(logits), jnp.asarray(chosen), jnp.asarray(weights))
    np.testing.assert_allclose(got, 4 * np.sum(share * p[kept].mean(0)), rtol=1e-5)
    z = router_z_loss(jnp.asarray(logits), jnp.asarray(weights))
    np.testing.assert_allclose(z, np.mean(np.log(np.exp(logits).sum(-1))[kept] ** 2), rtol=1e-5)


def test_the_objective_adds_its_coefficients_times_the_routers_losses(params: Any):
    model, batch = MODELS[None], text_batch(0)

    @jax.jit
    def three(params: Any, balance: Any, z: Any) -> Any:
        inputs = {"segments": batch.segments, "positions": batch.positions}
        found = model.intermediates(params, batch.tokens, **inputs, kinds=("router", "chosen"))
        plain = language_modelling(model)(params, batch, jax.random.key(0))
        whole = language_modelling(model, balance=balance, router_z=z)(params, batch, jax.random.key(0))
        terms = (
            load_balancing_loss(found["router"], found["chosen"], batch.weights),
            router_z_loss(found["router"], batch.weights),
        )
        return whole.value - plain.value, terms, whole.weight - plain.weight

    added, (balance, z), weight = three(params, 0.7, 0.3)
    np.testing.assert_allclose(added, 0.7 * balance + 0.3 * z, rtol=1e-4)
    assert weight == 0


def test_only_routers_learn_from_the_routers_losses_of_one_layer(params: Any):
    model, batch = mixtral(SHAPE), text_batch(0)

    def balance(params: Any) -> Any:
        with_it, without = (
            language_modelling(model, balance=coefficient)(params, batch, jax.random.key(0)).value
            for coefficient in (1.0, None)
        )
        return with_it - without

    gradient = tree.flatten(jax.jit(jax.grad(balance))(params))
    size = {path: float(np.abs(g).max()) for path, g in gradient.items()}
    assert size["layers/feed_forward/router"] > 1e-3
    last = np.abs(gradient["layers/feed_forward/down/kernel"][-1]).max()  # nothing is routed behind the last layer
    assert last <= 1e-6 < 1e-4 < np.abs(gradient["layers/feed_forward/down/kernel"][0]).max()


def test_a_model_without_a_router_cannot_be_balanced():
    dense = llama(LlamaShape(VOCABULARY, 16, 1, 2, 2, 8, 20))
    with pytest.raises(ValueError, match="no router"):
        language_modelling(dense, balance=0.01)


# Adaptation and cost ----------------------------------------------------------------------------------------------


def test_lora_leaves_the_router_unless_it_is_selected_and_counts_each_expert(params: Any):
    rank, (D, F) = 2, (SHAPE.width, SHAPE.ffn_width)
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


def test_adapted_experts_have_a_symmetric_hessian_and_are_the_merged_ones_in_every_member_of_a_sweep(params: Any):
    adaptation, batch = lora(2, select="layers/feed_forward/(gate/kernel|router)"), text_batch(0)
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


def test_adapters_of_attention_go_to_peft_and_those_of_experts_are_refused(params: Any, tmp_path: Path):
    base = jax.device_put(pretrained(local(GOLDEN)).load())
    checkpoint = Checkpoint(*hf_names(local(GOLDEN), base))

    def written(select: str) -> Any:
        delta, file = lora(2, select=select).init(jax.random.key(0), base), tmp_path / "delta.safetensors"
        save_delta(file, delta, adapt={"_target_": "adaptlab.adapt.lora", "rank": 2, "select": select}, base="0" * 64)
        return to_peft(load_delta(file), base, checkpoint)

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
