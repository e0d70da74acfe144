"""muP: rates by leaf, and activations that do not grow with width."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptlab import tree
from adaptlab.adapt import lora
from adaptlab.models import LlamaShape, llama, mlp
from adaptlab.optim.groups import Groups, add_decayed_weights, scale_by_group
from adaptlab.optim.mup import WidthTrial, coordinate_check, mup, mup_from_shapes

GOLDEN = Path(__file__).parents[1] / "golden"
# The first 200 of scikit-learn 1.9.1's load_digits(): 8 x 8 pixels from 0 to 16 (UCI, Alpaydin and Kaynak, CC BY 4.0).
DIGITS = np.load(GOLDEN / "digits_200.npz")
# Made with PyTorch: the mean absolute activation before and after each of four updates, at widths 64 to 2048 with base
# width 64. The file does not say its setting; digits / 16, ReLU (measured behind it), Linear's own start and Adam at
# 0.01 give its standard half up to the seed in torch 2.13, and its muP half starts with an output of 0.
REFERENCE = np.genfromtxt(GOLDEN / "mup_coordinate_check.csv", delimiter=",", names=True, dtype=None, encoding="utf8")
BASE, SEEDS = 64, 4
NAMES = ("hidden1", "hidden2", "output")


def values(resolved: Any) -> dict[str, float]:
    return {path: float(np.ravel(x)[0]) for path, x in tree.flatten(jax.device_get(resolved)).items()}


def llama_shapes(n: int, **kwargs: Any) -> Any:
    shape = LlamaShape(32, 8 * n, 2, 2 * n, n, 4, 12 * n, **kwargs)
    return jax.eval_shape(llama(shape).init, jax.random.key(0))


# Rates ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", ["rate", "multiplier"])
def test_hidden_matrices_learn_more_slowly_in_wider_models(head: Any):
    base, wide = llama_shapes(1, tied=False), llama_shapes(4, tied=False)
    rates = values(mup(8, head=head).rate(wide))
    for path, rate in rates.items():
        hidden = path.startswith("layers/") and path.endswith("kernel")
        assert rate == (0.25 if hidden or (path == "head/kernel" and head == "rate") else 1.0), path
    assert values(mup_from_shapes(base, head=head).rate(wide)) == rates


def test_each_half_of_a_low_rank_pair_has_the_rate_of_its_fan_in():
    deltas = [jax.eval_shape(lora(2).init, jax.random.key(0), llama_shapes(n)) for n in (1, 4)]
    rates = values(mup(8).rate(deltas[1]))
    assert {path[-2:]: rate for path, rate in rates.items()} == {"/a": 0.25, "/b": 1.0}
    assert values(mup_from_shapes(deltas[0]).rate(deltas[1])) == rates


def test_a_tied_embedding_is_an_input():
    assert values(mup(8).rate(llama_shapes(4)))["embed/embedding"] == 1.0


def test_at_the_base_width_nothing_changes():
    for groups in (mup(8), mup_from_shapes(llama_shapes(1))):
        assert set(values(groups.rate(llama_shapes(1))).values()) == {1.0}


def test_decay_keeps_its_strength_unless_told_otherwise():
    wide = llama_shapes(4)
    products = jax.tree.map(lambda r, d: r * d, mup(8).rate(wide), mup(8).decay(wide))
    assert set(values(products).values()) == {1.0}
    assert set(values(mup(8, independent_decay=False).decay(wide)).values()) == {1.0}


def test_the_base_width_may_be_traced():
    rates = jax.jit(jax.vmap(lambda n: mup(n).rate(llama_shapes(4))))(jnp.asarray([8.0, 16.0]))
    np.testing.assert_allclose(rates["layers"]["feed_forward"]["up"]["kernel"], [0.25, 0.5])


def test_what_mup_cannot_know_is_an_error():
    wide = llama_shapes(4)
    with pytest.raises((ValueError, TypeError), match="scale"):  # the checker of annotations may be first
        mup(8, head="scale")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=r"'tokens/\.\*' matches nothing"):
        mup(8, input="tokens/.*").rate(wide)
    with pytest.raises(ValueError, match="same adaptation"):
        mup_from_shapes({"w": jnp.zeros((2, 2))}).rate(wide)


def test_the_width_is_the_commonest_fan_in_unless_it_is_given():
    delta = {
        "a": {"kernel": jnp.zeros((16, 48))},
        "b": {"kernel": jnp.zeros((48, 16))},
        "c": {"kernel": jnp.zeros((16, 4))},
    }
    assert values(mup(8).rate(delta)) == {"a/kernel": 0.5, "b/kernel": 0.5, "c/kernel": 0.5}
    assert values(mup(8, width=32).rate(delta))["b/kernel"] == 0.25


# The perceptron in muP ------------------------------------------------------------------------------------------------


def test_in_mup_the_perceptron_starts_with_the_variances_of_table_8():
    wide, base = (mlp([64, n, n, 10], base_width=BASE).init(jax.random.key(0)) for n in (1024, BASE))
    for layer, variance in (("dense_0", 1 / 64), ("dense_1", 1 / 1024), ("dense_2", 1 / BASE)):
        np.testing.assert_allclose(np.var(wide[layer]["kernel"]), variance, rtol=0.05)
    plain = mlp([64, BASE, BASE, 10]).init(jax.random.key(0))
    jax.tree.map(np.testing.assert_array_equal, base, plain)


def test_in_mup_the_perceptrons_output_is_divided_by_the_growth_of_its_width():
    model, plain = mlp([3, 12, 2], base_width=4), mlp([3, 12, 2])
    params = jax.tree.map(lambda x: x + 0.1, model.init(jax.random.key(0)))
    x, bias = jnp.ones((1, 3)), params["dense_1"]["bias"][None]
    np.testing.assert_allclose(model.apply(params, x) - bias, (plain.apply(params, x) - bias) / 3, rtol=1e-5)


def test_impossible_parametrisations_are_errors():
    with pytest.raises(ValueError, match=r"base_width=4.*hidden layer.*\[3, 2\]"):
        mlp([3, 2], base_width=4)
    with pytest.raises((ValueError, TypeError), match="ones"):
        mlp([3, 2], head_init="ones")  # pyright: ignore[reportArgumentType]


# The coordinate check -------------------------------------------------------------------------------------------------


def trial(width: int, groups: Groups | None, **parametrisation: Any) -> WidthTrial:
    """The reference's setting: digits, ReLU, two hidden layers, PyTorch's variances, Adam at 0.01, cross-entropy."""
    widths = [64, width, width, 10]
    # A shallower perceptron over the same weights gives what enters the activations.
    layers = [mlp(widths[: i + 2], activation="relu", gain=3**-0.5) for i in range(2)]
    layers.append(mlp(widths, activation="relu", gain=3**-0.5, **parametrisation))
    x, labels = jnp.asarray(DIGITS["x"], jnp.float32) / 16, jnp.asarray(DIGITS["y"], jnp.int32)

    def activations(params: Any) -> dict[str, jax.Array]:
        parts = [{f"dense_{j}": params[f"dense_{j}"] for j in range(i + 1)} for i in range(2)]
        hidden = [jax.nn.relu(layer.apply(part, x)) for layer, part in zip(layers[:2], parts, strict=True)]
        return dict(zip(NAMES, [*hidden, layers[2].apply(params, x)], strict=True))

    def loss(params: Any) -> jax.Array:
        return optax.losses.softmax_cross_entropy_with_integer_labels(layers[2].apply(params, x), labels).mean()

    chained = optax.chain(
        optax.scale_by_adam(), add_decayed_weights(0.0, groups), scale_by_group(groups, 4), optax.scale(-0.01)
    )

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return chained.update(updates, state, params)

    return WidthTrial(layers[2].init, loss, activations, optax.GradientTransformation(chained.init, update))


def in_mup(width: int, head_init: Any = "zeros") -> WidthTrial:
    groups = mup(BASE, width=width, input="dense_0/.*", output="dense_2/.*", head="multiplier")
    return trial(width, groups, base_width=BASE, head_init=head_init)


def in_standard(width: int) -> WidthTrial:
    """The reference's start too: PyTorch's Linear draws kernels and biases from U(-1/√fan-in, 1/√fan-in)."""
    plain = trial(width, None)

    def init(key: jax.Array) -> Any:
        params = plain.init(key)
        fan_in = {layer: params[layer]["kernel"].shape[0] for layer in params}

        def uniform(path: str, x: jax.Array) -> jax.Array:
            bound = fan_in[path.split("/")[0]] ** -0.5
            own = jax.random.fold_in(key, sum(map(ord, path)))
            return jax.random.uniform(own, x.shape, minval=-bound, maxval=bound)

        return tree.map_with_path(uniform, params)

    return plain._replace(init=init)


def test_in_the_standard_parametrisation_activations_grow_with_width_as_in_the_reference():
    widths = (64, 256, 1024, 2048)
    check = coordinate_check(in_standard, widths, steps=1, seeds=SEEDS)
    rows = REFERENCE[(REFERENCE["param"] == "sp") & np.isin(REFERENCE["width"], widths)]
    for name, published in (("hidden1", 0.0), ("hidden2", 0.65), ("output", 1.17)):
        size = np.stack([rows[f"l1_{name}"][rows["step"] == t] for t in range(2)], axis=1)
        slope = np.polyfit(np.log(widths), np.log(size[:, 1]), 1)[0]
        np.testing.assert_allclose(check.slope[name][1], slope, atol=0.05)
        np.testing.assert_allclose(check.slope[name][1], published, atol=0.06)
        np.testing.assert_allclose(check.size[name][:, 1], size[:, 1], rtol=0.15)


@pytest.mark.parametrize("head_init", ["zeros", "normal"])
def test_in_mup_no_activation_grows_with_width(head_init: str):
    check = coordinate_check(lambda width: in_mup(width, head_init), (64, 256, 1024), steps=3, seeds=SEEDS)
    for name in NAMES:
        assert (check.slope[name][1:] <= 0.07).all(), (name, check.slope[name])
    for name in NAMES[:2]:
        assert (np.abs(check.slope[name]) <= 0.07).all(), (name, check.slope[name])
    if head_init == "zeros":
        assert np.isnan(check.slope["output"][0])  # no logarithm of 0
        assert (np.abs(check.slope["output"][1:]) <= 0.1).all()


@pytest.mark.parametrize("missing", ["rates", "multiplier"])
def test_half_of_mup_fails_the_check(missing: str):
    def half(width: int) -> WidthTrial:
        if missing == "rates":
            return trial(width, None, base_width=BASE)
        return trial(width, mup(BASE, width=width, input="dense_0/.*", output="dense_2/.*", head="multiplier"))

    check = coordinate_check(half, (64, 256, 1024), steps=1, seeds=2)
    assert max(check.slope[name][1] for name in NAMES) > 0.3


def test_a_slope_needs_two_widths():
    with pytest.raises(ValueError, match=r"at least two widths.*\[64\]"):
        coordinate_check(in_mup, [64])
