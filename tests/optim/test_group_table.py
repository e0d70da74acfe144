"""The table of groups has every element once."""

import jax
import pytest

from adaptlab import tree
from adaptlab.optim.group_depth import by_depth, freeze_below, gradual_unfreezing
from adaptlab.optim.group_rules import combine, no_decay
from adaptlab.optim.group_table import group_table
from tests.optim.grouped import PARAMS


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
