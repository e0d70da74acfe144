"""Parameter groups are torch's; a late group trains as if training had begun at its start."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptlab import tree
from adaptlab.optim.group_depth import by_depth, gradual_unfreezing
from adaptlab.optim.group_rules import combine, everywhere
from adaptlab.optim.groups import add_decayed_weights, bias_corrected, mask_frozen, scale_by_group
from tests.optim.grouped import (
    ADAM,
    ALIKE,
    AT_ONCE,
    DISCRIMINATIVE,
    GRADS,
    LR,
    PARAMS,
    STEPS,
    UNFREEZING,
    chain,
    layer_of,
    pieces,
    run,
)


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
    hidden = optax.GradientTransformation(
        lambda params: params if jax.tree.leaves(params) else jnp.zeros(()), lambda u, s, p=None: (u, s)
    )
    with pytest.raises(ValueError, match=r"bias_corrected: the core says of 1 of the 4 arrays.*all start at once"):
        run(chain(hidden, gradual_unfreezing()), grads=GRADS[:1])
