"""Groups by depth: which layer a leaf belongs to."""

import pytest

from adaptlab.optim.group_depth import by_depth, freeze_below, gradual_unfreezing, layering
from tests.optim.grouped import PARAMS, L, random_tree, values


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
