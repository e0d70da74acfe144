"""Parameter groups: claims about the updates themselves, on stacked leaves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptlab import config, tree
from adaptlab.adapt import full, lora
from adaptlab.models import LlamaShape, llama
from adaptlab.optim import adafactor, adamw
from adaptlab.optim.group_depth import by_depth, freeze_below, gradual_unfreezing, layering
from adaptlab.optim.group_rules import by_pattern, combine, everywhere, group, no_decay
from adaptlab.optim.group_table import group_table
from adaptlab.optim.groups import Groups, add_decayed_weights, bias_corrected, mask_frozen, scale_by_group
from adaptlab.shard import Placement, make_mesh, place
from adaptlab.train import Program, device_numbers, make_program
from tests.laws.table import MODELS, scattered

L, STEPS, LR = 3, 9, 0.01
SHAPES = {
    "embed": {"embedding": (5, 2)},
    "layers": {"ffn": {"kernel": (L, 4, 5)}, "ffn_norm": {"scale": (L, 2)}},
    "norm": {"scale": (2,)},
}


def random_tree(shapes: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


PARAMS = random_tree(SHAPES, 0)
GRADS = [random_tree(SHAPES, 1 + t) for t in range(STEPS)]


def chain(core: Any, groups: Groups | None, *, clip: Any = None, decay: Any = 0.1, lr: Any = LR) -> Any:
    """What an optimiser of the house is made of, in its order."""
    inner = optax.chain(
        mask_frozen(groups, STEPS),
        optax.identity() if clip is None else optax.clip_by_global_norm(clip),
        bias_corrected(core, groups, STEPS),
        add_decayed_weights(decay, groups),
        optax.scale(-lr),
        scale_by_group(groups, STEPS),
    )

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def run(optimizer: Any, params: Any = PARAMS, grads: Any = tuple(GRADS)) -> list[dict[str, np.ndarray]]:
    """The parameters before the first and after each update, by path."""

    @jax.jit
    def step(params: Any, state: Any, grad: Any) -> Any:
        updates, state = optimizer.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    state, seen = optimizer.init(params), [params]
    for grad in grads:
        params, state = step(params, state, grad)
        seen.append(params)
    return [{path: np.asarray(x) for path, x in tree.flatten(p).items()} for p in seen]


def pieces(seen: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """`{piece: [STEPS + 1, elements]}`; a stacked leaf gives a piece per layer."""
    named = {path: np.stack([one[path] for one in seen]) for path in seen[0]}
    stacked = {p: x for p, x in named.items() if p.startswith("layers/")}
    cut = {f"{p}[{i}]": x[:, i] for p, x in stacked.items() for i in range(x.shape[1])}
    return {p: x.reshape(len(x), -1) for p, x in ({p: x for p, x in named.items() if p not in stacked} | cut).items()}


def layer_of(piece: str) -> int:
    if piece.startswith("layers/"):
        return int(piece[-2])
    return -1 if piece.startswith("embed") else L


# What torch does, in NumPy ------------------------------------------------------------------------------------------


def torch_adamw(w: np.ndarray, grads: list[Any], lr: float, decay: float, b1: float, b2: float, eps: float) -> list:
    """torch.optim.AdamW on one parameter of a group with its own lr; None is no gradient: the parameter is skipped."""
    w, m, v, count, seen = w.astype(np.float64), 0.0, 0.0, 0, [w]
    for g in grads:
        if g is not None:
            count += 1
            w = w - lr * decay * w
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            w = w - lr / (1 - b1**count) * m / (np.sqrt(v) / np.sqrt(1 - b2**count) + eps)
        seen.append(w)
    return seen


def torch_sgd(w: np.ndarray, grads: list[Any], lr: float, decay: float, momentum: float) -> list:
    """torch.optim.SGD with momentum, and decay apart from it."""
    w, m, seen = w.astype(np.float64), 0.0, [w]
    for g in grads:
        if g is not None:
            m = momentum * m + g
            w = w - lr * (m + decay * w)
        seen.append(w)
    return seen


def reference(one: Any, starts: dict[int, float], rates: dict[int, float]) -> dict[str, np.ndarray]:
    """Each piece trained on its own, from its own start, at its own rate."""
    grads, weights = pieces([tree.flatten(g) for g in jax.device_get(GRADS)]), pieces([tree.flatten(PARAMS)])
    wanted = {}
    for piece, w in weights.items():
        layer = layer_of(piece)
        seen = [g if t >= starts[layer] else None for t, g in enumerate(grads[piece])]
        wanted[piece] = np.stack(one(w[0], seen, LR * rates[layer]))
    return wanted


def assert_same(got: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for piece, x in got.items():
        np.testing.assert_allclose(x, wanted[piece], rtol=2e-6, atol=2e-7, err_msg=piece)


AT_ONCE = dict.fromkeys(range(-1, L + 1), 0.0)
ALIKE = dict.fromkeys(range(-1, L + 1), 1.0)
UNFREEZING = {L: 0.0, 2: 0.0, 1: 2.0, 0: 4.0, -1: 7.0}  # 4 groups over 9 updates: round(0, 2.25, 4.5, 6.75)
DISCRIMINATIVE = {L: 1.0, 2: 1.0, 1: 1 / 2.6, 0: 1 / 2.6**2, -1: 1 / 2.6**3}
ADAM = {"b1": 0.8, "b2": 0.95, "eps": 1e-6}


@pytest.mark.parametrize(
    ("groups", "starts", "rates"),
    [
        (None, AT_ONCE, ALIKE),
        (everywhere(), AT_ONCE, ALIKE),
        (by_depth(2.6), AT_ONCE, DISCRIMINATIVE),
        (gradual_unfreezing(), UNFREEZING, ALIKE),
        (combine([by_depth(2.6), gradual_unfreezing()]), UNFREEZING, DISCRIMINATIVE),
    ],
    ids=["none", "everywhere", "by_depth", "gradual", "both"],
)
def test_adamw_is_torch_adamw_with_parameter_groups(groups: Any, starts: Any, rates: Any):
    got = pieces(run(chain(optax.scale_by_adam(**ADAM), groups)))
    assert_same(got, reference(lambda w, g, lr: torch_adamw(w, g, lr, 0.1, **ADAM), starts, rates))


def test_momentum_begins_with_the_first_gradient_of_a_group():
    got = pieces(run(chain(optax.trace(decay=0.9), combine([by_depth(2.6), gradual_unfreezing()]))))
    assert_same(got, reference(lambda w, g, lr: torch_sgd(w, g, lr, 0.1, 0.9), UNFREEZING, DISCRIMINATIVE))


def test_adam_with_one_count_for_all_would_take_another_first_step():
    groups, b1, b2 = gradual_unfreezing(), 0.9, 0.999
    start = int(UNFREEZING[-1])

    def first_step(adam: Any) -> np.ndarray:
        chained = optax.chain(mask_frozen(groups, STEPS), adam, optax.scale(-LR), scale_by_group(groups, STEPS))
        with jax.numpy_dtype_promotion("standard"):
            x = pieces(run(chained))["embed/embedding"]
        return np.abs(x[start + 1] - x[start])

    own, common = first_step(bias_corrected(optax.scale_by_adam(), groups, STEPS)), first_step(optax.scale_by_adam())
    ratio = (1 - b1) / (1 - b1 ** (start + 1)) / np.sqrt((1 - b2) / (1 - b2 ** (start + 1)))
    np.testing.assert_allclose(own, LR, rtol=1e-3)  # lr · sign(g)
    np.testing.assert_allclose(common, ratio * LR, rtol=1e-3)
    assert ratio < 0.6


# Frozen is frozen -----------------------------------------------------------------------------------------------------

CORES = {
    "adam": lambda: optax.scale_by_adam(),
    "momentum": lambda: optax.trace(decay=0.9, nesterov=True),
    "lion": lambda: optax.scale_by_lion(),
    "rmsprop": lambda: optax.scale_by_rms(initial_scale=0.1),
    "amsgrad": lambda: optax.scale_by_amsgrad(),
    "chained": lambda: optax.chain(optax.scale_by_adam(), optax.trace(decay=0.5)),
    "factored": lambda: optax.scale_by_factored_rms(min_dim_size_to_factor=4),
}


@pytest.mark.parametrize("core", CORES)
def test_a_frozen_piece_keeps_its_bits_until_its_update_and_moves_at_it(core: str):
    got = pieces(run(chain(CORES[core](), gradual_unfreezing(), clip=0.5)))
    for piece, x in got.items():
        start = int(UNFREEZING[layer_of(piece)])
        assert (x[: start + 1].view(np.int32) == x[0].view(np.int32)).all(), piece
        assert (x[start + 1] != x[start]).mean() > 0.9, piece


@pytest.mark.parametrize("core", CORES)
def test_a_late_piece_trains_as_if_training_had_begun_at_its_start(core: str):
    late = pieces(run(chain(CORES[core](), gradual_unfreezing())))
    for start in (2, 4, 7):
        fresh = pieces(run(chain(CORES[core](), None), grads=GRADS[start:]))
        for piece in (p for p in late if UNFREEZING[layer_of(p)] == start):
            np.testing.assert_allclose(late[piece][start:], fresh[piece], rtol=2e-6, atol=2e-7, err_msg=piece)


def test_a_state_that_was_carried_over_waits_for_its_start():
    """Adam's own count and moments, of an earlier training, go on at s where they stood."""
    groups, adam = gradual_unfreezing(), optax.scale_by_adam(**ADAM)
    corrected = bias_corrected(adam, groups, STEPS)
    with jax.numpy_dtype_promotion("standard"):
        earlier = adam.init(PARAMS)
        for grad in GRADS[:4]:
            _, earlier = adam.update(grad, earlier, PARAMS)
        state = corrected.init(PARAMS)._replace(inner=earlier)
        seen, wanted = [], []
        for grad in GRADS:
            updates, state = corrected.update(grad, state, PARAMS)
            seen.append(updates)
        for grad in GRADS[7:]:
            updates, earlier = adam.update(grad, earlier, PARAMS)
            wanted.append(updates)
    for got, want in zip(seen[7:], wanted, strict=True):
        np.testing.assert_allclose(got["embed"]["embedding"], want["embed"]["embedding"], rtol=2e-6)


def test_what_is_frozen_may_have_any_gradient():
    broken = jax.tree.map(lambda g: g, GRADS[0])
    broken["embed"]["embedding"] = jnp.full((5, 2), jnp.nan)
    broken["layers"]["ffn"]["kernel"] = broken["layers"]["ffn"]["kernel"].at[0].set(jnp.inf)
    plain = run(chain(optax.scale_by_adam(), gradual_unfreezing(), clip=0.5))
    seen = run(chain(optax.scale_by_adam(), gradual_unfreezing(), clip=0.5), grads=[broken, *GRADS[1:]])
    for one, other in zip(plain, seen, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_updates_before_the_start_are_positive_zero():
    for transform in (mask_frozen, scale_by_group):
        t = transform(freeze_below(L), STEPS)
        for bad in (jnp.nan, -jnp.inf, -1.0):
            updates, _ = t.update(jax.tree.map(lambda x, bad=bad: jnp.full_like(x, bad), PARAMS), t.init(PARAMS))
            assert not np.asarray(updates["layers"]["ffn"]["kernel"]).view(np.int32).any()
            np.testing.assert_array_equal(updates["norm"]["scale"], bad)


def test_a_frozen_gradient_does_not_count_in_the_clipping_norm():
    huge = jax.tree.map(lambda g: g, GRADS[0])
    huge["embed"]["embedding"] = 1e6 * huge["embed"]["embedding"]
    optimizer = chain(optax.identity(), freeze_below(0), clip=0.5, decay=0.0, lr=1.0)
    updates, _ = optimizer.update(huge, optimizer.init(PARAMS), PARAMS)
    np.testing.assert_allclose(tree.norm(updates), 0.5, rtol=1e-5)


def test_what_is_not_delayed_costs_nothing():
    core, groups = optax.scale_by_adam(), by_depth(2.6)
    corrected = bias_corrected(core, groups, STEPS)

    def size(update: Any, state: Any) -> int:
        return len(jax.make_jaxpr(update)(PARAMS, state, PARAMS).eqns)

    with jax.numpy_dtype_promotion("standard"):
        assert size(corrected.update, corrected.init(PARAMS)) <= size(core.update, core.init(PARAMS)) + 1
    for transform in (mask_frozen(None, STEPS), scale_by_group(None, STEPS)):
        assert transform.update(PARAMS, transform.init(PARAMS), PARAMS)[0] is PARAMS
    assert bias_corrected(core, None, STEPS) is core


def test_low_precision_deltas_keep_their_dtype():
    params = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    for transform in (scale_by_group(by_depth(2.0), STEPS), add_decayed_weights(0.5, by_depth(2.0))):
        updates, _ = transform.update(params, transform.init(params), params)
        assert {x.dtype for x in jax.tree.leaves(updates)} == {jnp.dtype(jnp.bfloat16)}


def test_the_optimisers_state_can_be_mapped_over_as_its_parameters():
    optimizer = chain(optax.scale_by_adam(), gradual_unfreezing())
    state = optimizer.init(PARAMS)
    marked = optax.tree_map_params(
        optimizer, lambda _, path: path, state, tree.map_with_path(lambda path, _: path, PARAMS),
        transform_non_params=lambda _: "",
    )  # fmt: skip
    paths = [x for x in jax.tree.leaves(marked) if x]
    assert sorted(paths) == sorted(2 * list(tree.flatten(PARAMS)))
    assert all(x.ndim == 0 for x, path in zip(jax.tree.leaves(state), jax.tree.leaves(marked), strict=True) if not path)


def test_a_core_that_looks_across_arrays_is_named():
    odd = optax.GradientTransformation(
        lambda params: jax.tree.map(lambda x: jnp.zeros(x.size), params), lambda u, s, p=None: (u, s)
    )
    with pytest.raises(ValueError, match=r"bias_corrected.*\(20,\).*\(60,\).*treats arrays and layers one by one"):
        run(chain(odd, gradual_unfreezing()), grads=GRADS[:1])


def test_a_core_that_hides_whose_its_state_is_is_named():
    with pytest.raises(ValueError, match=r"bias_corrected: the core says of \d+ of the \d+ arrays.*all start at once"):
        run(adafactor(LR, total_steps=STEPS, groups=gradual_unfreezing()), grads=GRADS[:1])


# Numbers may be traced ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "numbers"),
    [
        (lambda x: by_depth(x), (1.0, 2.0, 2.6)),
        (lambda x: gradual_unfreezing(x), (0.0, 0.1, 0.3)),
        (lambda x: freeze_below(x), (0.0, 1.0, 3.0)),
        (lambda x: by_pattern({".*/kernel": group(x, decay=x, start=x), ".*": group()}), (0.0, 0.2, 0.5)),
        (lambda x: combine({"a": by_depth(1.0 + x), "b": gradual_unfreezing(x)}), (0.0, 0.1, 0.2)),
    ],
    ids=["by_depth", "gradual", "freeze_below", "by_pattern", "combine"],
)
def test_a_member_of_a_sweep_is_the_run_alone(make: Any, numbers: tuple[float, ...]):
    def final(x: Any) -> Any:
        optimizer = chain(optax.scale_by_adam(**ADAM), make(x), clip=1.0)
        params, state = PARAMS, optimizer.init(PARAMS)
        for grad in GRADS[:5]:
            updates, state = optimizer.update(grad, state, params)
            params = optax.apply_updates(params, updates)
        return params

    swept = jax.jit(jax.vmap(final))(jnp.asarray(numbers, jnp.float32))
    for i, x in enumerate(numbers):
        alone = jax.jit(final)(x)  # traced, as in a program
        known = final(x)  # and known, as for the table
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=2e-6, atol=1e-7), swept, alone)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=1e-7), alone, known)
    assert np.ptp(np.asarray(swept["layers"]["ffn"]["kernel"]), axis=0).max() > 1e-4


def test_known_and_traced_fractions_start_at_the_same_update():
    fractions, totals = np.linspace(0, 1, 41), (7, 10, 30, 1000, 12345)
    traced = jax.jit(lambda x, total: gradual_unfreezing(x).start(PARAMS, total), static_argnums=1)
    for total in totals:
        for x in fractions:
            jax.tree.map(
                np.testing.assert_array_equal,
                jax.device_get(traced(np.float32(x), total)),
                gradual_unfreezing(float(x)).start(PARAMS, total),
            )


# A real model ---------------------------------------------------------------------------------------------------------

MODEL = llama(LlamaShape(11, 8, 3, 2, 1, 4, 12, tied=False))
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 11, (2, 6)))


@pytest.mark.parametrize("adaptation", [full(), lora(2)], ids=["full", "lora"])
def test_a_llama_thaws_layer_by_layer_in_a_sweep_over_the_factor(adaptation: Any):
    base = jax.jit(MODEL.init)(jax.random.key(0))
    delta = adaptation.init(jax.random.key(1), base)
    total = 8

    def train(factor: jax.Array) -> Any:
        groups = combine([by_depth(factor), gradual_unfreezing()])
        parts = [mask_frozen(groups, total), bias_corrected(optax.scale_by_adam(), groups, total)]
        optimizer = optax.chain(
            *parts, add_decayed_weights(0.1, groups), optax.scale(-LR), scale_by_group(groups, total)
        )

        def nll(delta: Any) -> jax.Array:
            logits = MODEL.apply(adaptation.bind(base, delta), TOKENS)
            return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), TOKENS[..., None], axis=-1))

        def step(carry: Any, _: None) -> Any:
            delta, state = carry
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer.update(jax.grad(nll)(delta), state, delta)
            delta = optax.apply_updates(delta, updates)
            return (delta, state), delta

        return jax.lax.scan(step, (delta, optimizer.init(delta)), None, length=total)[1]

    starts = tree.flatten(gradual_unfreezing().start(delta, total))
    swept = jax.device_get(jax.jit(jax.vmap(train))(jnp.asarray([1.0, 2.6])))
    moved = tree.flatten(jax.tree.map(lambda x, x0: x != x0, swept, jax.device_get(delta)))
    for path, change in moved.items():
        stacked = path.startswith("layers/")
        # [members, steps, layers or 1, elements]
        change = change.reshape(2, total, change.shape[2] if stacked else 1, -1)
        for i, start in enumerate(np.broadcast_to(starts[path].ravel(), change.shape[2])):
            assert not change[:, : int(start), i].any(), (path, i)
            # B is 0 until its first update, so that A's first gradient is 0: A moves by its decay alone.
            assert change[:, int(start), i].any(-1).all(), (path, i)
    want = {0.0, 2.0, 4.0, 6.0} if "embed" in delta else {0.0, 3.0, 5.0}
    assert {float(s) for x in starts.values() for s in np.ravel(x)} == want


def test_groups_on_a_mesh_are_groups_on_one_device():
    row, (numbers, seed) = MODELS["llama_untied_gqa"], device_numbers({"factor": 2.6}, 0)
    base = scattered(jax.jit(row.model.init)(jax.random.key(0)), 0)
    placement = Placement(make_mesh(data=4, tensor=2), row.model.axes())

    def program(placement: Placement | None) -> Program:
        def optim(n: Any) -> Any:
            groups = combine([by_depth(n["factor"]), gradual_unfreezing(0.5)])
            return adamw(0.01, total_steps=4, clip=1.0, weight_decay=0.1, groups=groups)

        return make_program(lambda _: row.loss, lambda _: full(), optim, placement=placement)

    deltas = []
    for there in (None, placement):
        one, place_batch = program(there), lambda x, there=there: x if there is None else jax.device_put(x, there.batch)
        here = base if there is None else place(base, there.shardings(there.axes, base))
        state = one.init(numbers, seed, here)
        for i in range(3):
            state, _ = one.step(numbers, seed, state, here, place_batch(row.batch(i)))
        deltas.append(jax.device_get(state.delta))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-5), *deltas)
    np.testing.assert_array_equal(deltas[1]["embed"]["embedding"], base["embed"]["embedding"])


# Which leaf belongs where ---------------------------------------------------------------------------------------------


def values(resolved: Any) -> dict[str, list[float]]:
    return {path: np.ravel(x).tolist() for path, x in tree.flatten(jax.device_get(resolved)).items()}


def test_rates_fall_with_depth_and_the_embeddings_lie_below_the_first_layer():
    rates = by_depth(2.0).rate(PARAMS)
    assert values(rates) == {
        "embed/embedding": [0.125],
        "layers/ffn/kernel": [0.25, 0.5, 1.0],
        "layers/ffn_norm/scale": [0.25, 0.5, 1.0],
        "norm/scale": [1.0],
    }
    assert rates["layers"]["ffn"]["kernel"].shape == (L, 1, 1)


def test_layers_that_stand_one_by_one_are_layers():
    delta = random_tree({f"dense_{i}": {"kernel": (2, 2), "bias": (2,)} for i in range(12)}, 0)
    rates = values(by_depth(2.0).rate(delta))
    assert [rates[f"dense_{i}/kernel"] for i in (0, 9, 11)] == [[2.0**-11], [0.25], [1.0]]
    assert rates["dense_9/kernel"] == rates["dense_9/bias"]


def test_stacks_are_counted_from_their_own_tops():
    delta = random_tree({"encoder": {"layers": {"w": (2, 3)}}, "decoder": {"layers": {"w": (4, 3)}}}, 0)
    assert values(by_depth(2.0).rate(delta)) == {
        "encoder/layers/w": [0.5, 1],
        "decoder/layers/w": [0.125, 0.25, 0.5, 1],
    }


def test_unfreezing_does_not_wait_for_what_delta_does_not_have():
    delta = random_tree({"embed": {"embedding": (5, 2)}, "layers": {"w": (2, 3)}}, 0)
    assert values(gradual_unfreezing().start(delta, 30)) == {"embed/embedding": [20], "layers/w": [10, 0]}
    assert values(gradual_unfreezing(0.1).start({"embed": delta["embed"]}, 30)) == {"embed/embedding": [0]}
    assert values(gradual_unfreezing(0.1).start(delta, 30)) == {"embed/embedding": [6], "layers/w": [3, 0]}
    assert gradual_unfreezing().start({}, 30) == {}


def test_freezing_counts_layers_from_the_bottom():
    inf = float("inf")
    starts = values(freeze_below(2).start(PARAMS, 9))
    assert starts["layers/ffn/kernel"] == [inf, inf, 0]
    assert (starts["embed/embedding"], starts["norm/scale"]) == ([inf], [0])
    assert values(freeze_below(0).start(PARAMS, 9))["layers/ffn/kernel"] == [0, 0, 0]


def test_a_leaf_that_is_not_stacked_as_its_stack_is_named():
    delta = random_tree({"layers": {"shared": (7,), "w": (2, 3)}}, 0)
    with pytest.raises(ValueError, match=r"layers/w of shape \(2, 3\).*7 layers.*`stacked`"):
        by_depth().rate(delta)
    only = layering(stacked="(?P<stack>layers)/w")
    assert values(by_depth(2.0, layers=only).rate(delta)) == {"layers/shared": [1], "layers/w": [0.5, 1]}


def test_patterns_take_paths_in_order():
    groups = by_pattern(
        {
            "layers/.*norm/.*": {"decay": 0.0},
            "layers/.*": group(0.5, start=0.25),
            "embed/.*": {"frozen": True},
            ".*": {},
        }
    )
    assert values(groups.rate(PARAMS)) == {
        "embed/embedding": [1],
        "layers/ffn/kernel": [0.5],
        "layers/ffn_norm/scale": [1],
        "norm/scale": [1],
    }
    assert values(groups.decay(PARAMS))["layers/ffn_norm/scale"] == [0]
    assert values(groups.start(PARAMS, 10)) == {
        "embed/embedding": [float("inf")],
        "layers/ffn/kernel": [2],
        "layers/ffn_norm/scale": [0],
        "norm/scale": [0],
    }


def test_patterns_must_bite_and_cover():
    with pytest.raises(ValueError, match=r"'attention/.\*' matches nothing[\s\S]*layers/ffn/kernel"):
        by_pattern({"attention/.*": group(), ".*": group()}).rate(PARAMS)
    with pytest.raises(ValueError, match=r"covers no \['embed/embedding', 'norm/scale'\]"):
        by_pattern({"layers/.*": group()}).start(PARAMS, 10)
    with pytest.raises(ValueError, match="matches nothing"):
        no_decay("head/.*").decay(PARAMS)


def test_norms_and_biases_do_not_decay():
    base = jax.eval_shape(MODEL.init, jax.random.key(0))
    spared = [path for path, x in values(no_decay().decay(base)).items() if x == [0.0]]
    assert spared == ["layers/attention_norm/scale", "layers/feed_forward_norm/scale", "norm/scale"]
    low_rank = jax.eval_shape(lora(2).init, jax.random.key(0), base)
    assert all(x == [1.0] for x in values(no_decay().decay(low_rank)).values())

    transform = add_decayed_weights(0.5, no_decay())
    updates, _ = transform.update(GRADS[0], transform.init(PARAMS), PARAMS)
    np.testing.assert_array_equal(updates["norm"]["scale"], GRADS[0]["norm"]["scale"])
    kernel = GRADS[0]["layers"]["ffn"]["kernel"] + 0.5 * PARAMS["layers"]["ffn"]["kernel"]
    np.testing.assert_allclose(updates["layers"]["ffn"]["kernel"], kernel, rtol=1e-6)


def test_combining_multiplies_rates_and_decays_and_takes_the_latest_start():
    both = combine([by_depth(2.0), by_pattern({".*": group(0.5, decay=0.1, start=0.5)}), freeze_below(1), no_decay()])
    assert values(both.rate(PARAMS))["layers/ffn/kernel"] == [0.125, 0.25, 0.5]
    assert values(both.start(PARAMS, 10))["layers/ffn/kernel"] == [float("inf"), 5, 5]
    decays = values(both.decay(PARAMS))
    assert decays["layers/ffn_norm/scale"] == [0]
    np.testing.assert_allclose(decays["layers/ffn/kernel"], 0.1)
    assert values(combine([]).rate(PARAMS)) == values(everywhere().rate(PARAMS))


# The table ------------------------------------------------------------------------------------------------------------


def test_the_table_has_every_element_in_one_row():
    rows = group_table(combine([by_depth(2.0), gradual_unfreezing(), no_decay()]), PARAMS, 8)
    assert [(r.paths, r.layers, r.parameters, r.rate, r.decay, r.start) for r in rows] == [
        (("embed/embedding",), "all", 10, 0.125, 1.0, 6),
        (("layers/ffn/kernel",), "0", 20, 0.25, 1.0, 4),
        (("layers/ffn/kernel",), "1", 20, 0.5, 1.0, 2),
        (("layers/ffn/kernel",), "2", 20, 1.0, 1.0, 0),
        (("layers/ffn_norm/scale",), "0", 2, 0.25, 0.0, 4),
        (("layers/ffn_norm/scale",), "1", 2, 0.5, 0.0, 2),
        (("layers/ffn_norm/scale",), "2", 2, 1.0, 0.0, 0),
        (("norm/scale",), "all", 2, 1.0, 0.0, 0),
    ]
    assert sum(row.parameters for row in rows) == tree.count(PARAMS)


def test_the_table_joins_what_trains_alike_and_says_what_never_does():
    rows = group_table(freeze_below(1), PARAMS, 8)
    assert [(r.paths, r.layers, r.start) for r in rows] == [
        (("embed/embedding",), "all", None),
        (("layers/ffn/kernel", "layers/ffn_norm/scale"), "0", None),
        (("layers/ffn/kernel", "layers/ffn_norm/scale"), "1-2", 0),
        (("norm/scale",), "all", 0),
    ]
    (row,) = group_table(None, jax.eval_shape(lambda: PARAMS), 8)
    assert (row.paths, row.parameters, row.start) == (tuple(tree.flatten(PARAMS)), tree.count(PARAMS), 0)
    assert group_table(gradual_unfreezing(), {}, 8) == []


def test_training_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"No group ever trains in 8 updates.*\n.*layers/ffn/kernel"):
        group_table(freeze_below(9), {"layers": PARAMS["layers"]}, 8)


# Configs --------------------------------------------------------------------------------------------------------------

YAMLS = sorted(path.stem for path in (config.conf_dir() / "groups").glob("*.yaml"))


@pytest.mark.parametrize("name", YAMLS)
def test_a_yaml_makes_groups_that_fit_a_llama(name: str):
    node = config.validate(config.compose(f"groups/{name}")["groups"])
    assert config.validate(node) == node
    groups = config.instantiate(node)
    base = jax.eval_shape(MODEL.init, jax.random.key(0))
    if name == "lora_plus":  # its groups are factors
        base = jax.eval_shape(lora(2).init, jax.random.key(0), base)
    rows = group_table(groups, base, 100)
    assert sum(row.parameters for row in rows) == tree.count(base)
    skeleton, numbers = config.split(node)
    traced = jax.jit(lambda n: config.instantiate(config.fill(skeleton, n)).rate(base))
    jax.tree.map(np.testing.assert_allclose, jax.device_get(traced(numbers)), jax.device_get(groups.rate(base)))


def test_there_is_a_yaml_for_each_way_of_grouping():
    assert {"by_depth", "by_pattern", "freeze_below", "gradual_unfreezing", "mup", "no_decay", "ulmfit"} <= set(YAMLS)
