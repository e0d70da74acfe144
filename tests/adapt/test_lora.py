from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf, tree
from adaptlab.adapt import (
    chain,
    count_trained,
    dora,
    fan_in_uniform,
    frozen,
    lora,
    lora_conv,
    materialize,
    partition,
    pissa,
    prepared,
    vera,
    weighted,
    zeros,
)
from tests.laws.table import scattered

BASE = scattered(
    {
        "layers": {"q": {"kernel": jnp.zeros((2, 6, 4))}, "k": {"kernel": jnp.zeros((2, 6, 4))}},
        "norm": {"scale": jnp.zeros(6)},
        "head": {"kernel": jnp.zeros((6, 8))},
    },
    0,
)
KEY = jax.random.key(0)


def random_delta(adaptation: Any, base: Any = BASE) -> Any:
    return scattered(adaptation.init(KEY, base), 1)


@pytest.mark.parametrize(("scaling", "scale"), [("standard", 6.0 / 4), ("rank_stabilised", 6.0 / 2)])
def test_the_merged_matrix_is_w_plus_scale_a_b(scaling: Any, scale: float):
    adaptation = lora(4, alpha=6.0, scaling=scaling)
    delta = random_delta(adaptation)
    merged = materialize(adaptation.bind(BASE, delta))
    a, b = (np.asarray(delta["layers"]["q"]["kernel"][name]) for name in "ab")
    wanted = np.asarray(BASE["layers"]["q"]["kernel"]) + scale * a @ b
    np.testing.assert_allclose(merged["layers"]["q"]["kernel"], wanted, rtol=1e-5, atol=1e-6)


def test_an_effective_rank_is_the_adaptation_of_that_rank():
    wide, narrow = lora(4, alpha=6.0, effective_rank=2.0), lora(2, alpha=6.0)
    delta = random_delta(wide)
    cut = {"a": lambda x: x[..., :2], "b": lambda x: x[..., :2, :]}
    small = tree.map_with_path(lambda path, x: cut[path[-1]](x), delta)
    got, wanted = (materialize(a.bind(BASE, d)) for a, d in ((wide, delta), (narrow, small)))
    for path, x in tree.flatten(wanted).items():
        np.testing.assert_allclose(tree.flatten(got)[path], x, rtol=1e-6, atol=1e-6)

    def total(delta: Any) -> jax.Array:
        return sum(jnp.sum(x**2) for x in jax.tree.leaves(materialize(wide.bind(BASE, delta))))

    grads = tree.flatten(jax.grad(total)(delta))
    assert not np.any(grads["layers/q/kernel/a"][..., 2:])
    assert not np.any(grads["layers/q/kernel/b"][..., 2:, :])


@pytest.mark.parametrize("scaling", ["standard", "rank_stabilised"])
def test_layer_ranks_are_the_adaptation_of_each_layer_with_its_rank(scaling: Any):
    select = "layers/.*/kernel"
    adaptation = lora(4, alpha=6.0, layer_ranks=(3.0, 1.0), select=select, scaling=scaling)
    delta = random_delta(adaptation)
    merged = materialize(adaptation.bind(BASE, delta))
    for i, rank in enumerate((3, 1)):
        layer_base = jax.tree.map(lambda x, i=i: x[i], {"layers": BASE["layers"]})
        cut = {"a": lambda x, i=i, r=rank: x[i, :, :r], "b": lambda x, i=i, r=rank: x[i, :r]}
        layer_delta = tree.map_with_path(lambda path, x, cut=cut: cut[path[-1]](x), delta)
        wanted = materialize(lora(rank, alpha=6.0, select=select, scaling=scaling).bind(layer_base, layer_delta))
        for path, x in tree.flatten(wanted).items():
            np.testing.assert_allclose(tree.flatten(merged)[path][i], x, rtol=1e-6, atol=1e-6, err_msg=path)


def test_equal_layer_ranks_are_an_effective_rank_in_every_bit():
    one, each = lora(4, effective_rank=3.0), lora(4, layer_ranks=[3.0, 3.0])
    delta = random_delta(one)
    assert tree.digest(each.init(KEY, BASE)) == tree.digest(one.init(KEY, BASE))
    assert tree.digest(materialize(each.bind(BASE, delta))) == tree.digest(materialize(one.bind(BASE, delta)))


def test_a_layer_of_rank_zero_is_the_base_and_trains_nothing():
    adaptation = lora(4, layer_ranks=[0.0, 2.0])
    delta = random_delta(adaptation)

    @jax.jit
    def merged_of(delta: Any, first: Any) -> Any:
        return materialize(lora(4, layer_ranks=[first, 2.0]).bind(BASE, delta))

    merged = merged_of(delta, 0.0)
    np.testing.assert_array_equal(merged["layers"]["q"]["kernel"][0], BASE["layers"]["q"]["kernel"][0])
    assert np.any(merged["layers"]["q"]["kernel"][1] != BASE["layers"]["q"]["kernel"][1])
    gradient = jax.grad(lambda delta: sum(jnp.sum(x**2) for x in jax.tree.leaves(merged_of(delta, 0.0))))(delta)
    used = sum(int(np.count_nonzero(x)) for x in jax.tree.leaves(gradient))
    assert used == count_trained(adaptation, BASE, delta) == 2 * 2 * (6 + 4)


def test_what_is_counted_is_what_a_gradient_reaches():
    methods = {
        "lora": lora(4, effective_rank=3.0),
        "dora": dora(4, effective_rank=3.0, detach_norm=False),
        "vera": vera(4, effective_rank=3.0),
        "pissa": pissa(4, effective_rank=3.0, select="layers/.*/kernel"),
        "chain": chain({"ranks": lora(4, layer_ranks=[1.0, 0.0]), "head": lora(2, select="head/kernel")}),
        "weighted": weighted({"one": lora(4, effective_rank=1.0), "two": lora(2, select="head/kernel")}),
        "partition": partition({"layers/q/.*": lora(3, effective_rank=1.0, select=".*"), ".*": frozen()}),
    }
    bases = {name: prepared(adaptation, BASE) for name, adaptation in methods.items()}
    methods["lora_conv"] = lora_conv(4, effective_rank=1.0, select="conv/kernel")
    bases["lora_conv"] = scattered({"conv": {"kernel": jnp.zeros((3, 3, 2, 5))}}, 0)
    for name, adaptation in methods.items():
        base = bases[name]
        delta = random_delta(adaptation, base)

        def total(delta: Any, base: Any = base, adaptation: Any = adaptation) -> jax.Array:
            # Cubes: the squares of DoRA's columns are its magnitudes alone.
            cubes = [jnp.sum(x**3) for x in jax.tree.leaves(materialize(adaptation.bind(base, delta)))]
            return sum(cubes, jnp.zeros(()))

        reached = sum(int(np.count_nonzero(x)) for x in jax.tree.leaves(jax.grad(total)(delta)))
        shapes = jax.eval_shape(adaptation.init, KEY, base)
        assert count_trained(adaptation, base, shapes) == reached < tree.count(delta), name


def test_only_what_is_selected_is_adapted():
    adaptation = lora(2, select=["layers/q/kernel", "head/.*"])
    delta = adaptation.init(KEY, BASE)
    assert {path.rpartition("/")[0] for path in tree.flatten(delta)} == {"layers/q/kernel", "head/kernel"}
    bound = tree.flatten(adaptation.bind(BASE, delta), leaf.is_node)
    assert {path for path, x in bound.items() if leaf.is_node(x)} == {"layers/q/kernel", "head/kernel"}
    assert bound["layers/k/kernel"] is BASE["layers"]["k"]["kernel"]


def test_a_matrix_draws_the_same_whatever_else_is_selected():
    few = lora(2, select="layers/q/kernel").init(KEY, BASE)
    many = lora(2, select=["layers/.*/kernel", "head/kernel"]).init(KEY, BASE)
    assert tree.digest(few["layers"]["q"]) == tree.digest(many["layers"]["q"])
    assert tree.digest(many["layers"]["q"]) != tree.digest(many["layers"]["k"])


def test_a_starts_as_pytorchs_linear_does_and_b_at_zero():
    delta = lora(50, select="head/kernel").init(KEY, {"head": {"kernel": jnp.zeros((100, 8))}})["head"]["kernel"]
    a = np.asarray(delta["a"])
    assert np.abs(a).max() <= 0.1
    np.testing.assert_allclose([a.mean(), a.var()], [0.0, 0.1**2 / 3], atol=2e-3)
    assert not np.any(delta["b"])


def test_initialisers_are_arguments():
    swapped = lora(2, select="head/kernel", init_a=zeros(), init_b=fan_in_uniform(2.0)).init(KEY, BASE)["head"][
        "kernel"
    ]
    assert not np.any(swapped["a"])
    assert 0 < np.abs(swapped["b"]).max() <= 2.0 / np.sqrt(2)


def test_adapters_lie_on_a_mesh_as_their_matrix_does():
    axes = lora(2, select="q").axes({"q": ("layers", "embed", "heads"), "k": ("layers", "embed", "kv_heads")})
    assert axes == {"q": {"a": ("layers", "embed", "rank"), "b": ("layers", "rank", "heads")}}


def test_adapters_nest_and_the_outer_one_sees_the_inner_one_as_its_weight():
    inner, outer = lora(2, alpha=4.0), lora(3, alpha=1.0, select=["layers/q/kernel", "head/kernel"])
    below = inner.bind(BASE, random_delta(inner))
    delta = random_delta(outer, below)
    merged = materialize(outer.bind(below, delta))
    flattened = materialize(outer.bind(materialize(below), delta))
    for path, wanted in tree.flatten(flattened).items():
        np.testing.assert_allclose(tree.flatten(merged)[path], wanted, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank=0 must be at least 1; use frozen"),
        ({"effective_rank": 2.0, "layer_ranks": [2.0, 2.0]}, "effective_rank and layer_ranks both"),
        ({"layer_ranks": [2.0, 2.0, 1.0]}, "layer_ranks has 3 numbers and 'layers/.*' is a stack of 2 layers"),
        ({"layer_ranks": [2.0], "select": "head/kernel"}, "1 numbers and 'head/kernel' is a stack of no layers"),
        ({"scaling": "loud"}, r"scaling='loud' is not one of \['standard', 'rank_stabilised'\]"),
        ({"select": "layer/.*"}, "(?s)Selector 'layer/.*' matches nothing.*layers/q/kernel"),
        ({"select": "norm/scale"}, r"lora selects 'norm/scale' of shape \(6,\), which is not a matrix"),
    ],
    ids=str,
)
def test_what_cannot_be_adapted_is_an_error(options: dict[str, Any], message: str):
    make: Any = lora  # wrong values, on purpose: the checker of annotations would see them first
    make = getattr(make, "__wrapped__", make)
    with pytest.raises(ValueError, match=message):
        make(**options).init(KEY, BASE)
