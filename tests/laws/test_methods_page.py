"""The table of methods in the documentation says what is so."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import pytest

from adaptlab import tree
from adaptlab.adapt import (
    Adaptation,
    adalora,
    bottleneck,
    frozen,
    layer_norm,
    lora,
    materialize,
    pissa,
    prefix,
    prepared,
    vera,
)
from adaptlab.flops import count_flops
from adaptlab.models import language_modelling
from adaptlab.train import make_objective
from tests.laws.table import text_batch
from tests.laws.test_flops import ATTENTION, LENGTH, MATRICES, MODEL, ROWS, SHAPE, D, L, P, R, weights

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "methods.md").read_text()
LINES = [[cell.strip() for cell in row.strip("|").split("|")] for row in PAGE.splitlines() if row.startswith("| `")]
FORMULAS = {cells[0].strip("`"): cells for cells in LINES if len(cells) == 8}
Sizes = dict[str, int]


class Method(NamedTuple):
    """A method on the tiny Llama, and the sizes of each place it adapts."""

    make: Callable[[Any], Adaptation]
    places: list[Sizes]


def each(matrices: list[tuple[int, int]]) -> list[Sizes]:
    return [{"D": d, "F": f, "R": R} for d, f in matrices] * L


SLOT = {"D": D, "R": R}
PREFIX = {"P": P, "G": SHAPE.kv_heads, "H": SHAPE.heads, "K": SHAPE.head_width}
METHODS = {
    "lora": Method(lambda m: lora(R), each(MATRICES)),
    "rslora": Method(
        lambda m: lora(R, scaling="rank_stabilised", select="layers/attention/.*/kernel"), each(ATTENTION)
    ),
    "pissa": Method(lambda m: pissa(R), each(MATRICES)),
    "adalora": Method(lambda m: adalora(R), each(MATRICES)),
    "vera": Method(lambda m: vera(R), each(MATRICES)),
    "houlsby": Method(lambda m: bottleneck(R, slots=m.slots()), [SLOT] * 2 * L),
    "pfeiffer": Method(lambda m: bottleneck(R, placement="pfeiffer", slots=m.slots()), [SLOT] * L),
    "parallel_adapter": Method(lambda m: bottleneck(R, placement="parallel", slots=m.slots()), [SLOT] * L),
    "prefix": Method(lambda m: prefix(P, slots=m.slots()), [PREFIX] * L),
    "layer_norm": Method(lambda m: layer_norm(), [SLOT] * (2 * L + 1)),
}


def value(formula: str, sizes: Sizes) -> int:
    """`2 D R + R`, in which a space between two factors is a product."""
    python = re.sub(r"(?<=[\w)]) (?=[\w(])", " * ", formula.strip("`"))
    return eval(python, {"__builtins__": {}}, dict(sizes))


def forward_flops(adaptation: Adaptation) -> int:
    objective = make_objective(language_modelling(MODEL), adaptation)
    base = prepared(adaptation, weights())
    delta = adaptation.init(jax.random.key(1), base)
    return count_flops(lambda d, b, batch: objective(d, b, batch, jax.random.key(0)).sum, delta, base, text_batch(0))


def test_every_yaml_of_an_adaptation_is_on_the_page():
    named = {name for cells in LINES for name in re.findall(r"`(\w+)`", cells[0])}
    assert named == {path.stem for path in (ROOT / "conf" / "adapt").glob("*.yaml")}
    assert FORMULAS.keys() == METHODS.keys()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_trains_as_many_parameters_as_the_page_says(name: str):
    adaptation = METHODS[name].make(MODEL)
    base = prepared(adaptation, weights())
    wanted = sum(value(FORMULAS[name][3], sizes) for sizes in METHODS[name].places)
    assert tree.count(adaptation.init(jax.random.key(1), base)) == wanted


@pytest.mark.parametrize("name", METHODS)
def test_a_method_takes_the_extra_flops_that_the_page_says(name: str):
    wanted = sum(value(FORMULAS[name][5], sizes) for sizes in METHODS[name].places)
    got = forward_flops(METHODS[name].make(MODEL)) - forward_flops(frozen())
    assert got == ROWS * LENGTH * wanted


@pytest.mark.parametrize("name", METHODS)
def test_a_method_merges_if_the_page_says_so(name: str):
    adaptation = METHODS[name].make(MODEL)

    def merged(base: Any) -> Any:
        base = prepared(adaptation, base)
        return materialize(adaptation.bind(base, adaptation.init(jax.random.key(1), base)))

    base = jax.eval_shape(MODEL.init, jax.random.key(0))
    if FORMULAS[name][6] == "yes":
        assert tree.flatten(jax.eval_shape(merged, base)).keys() == tree.flatten(base).keys()
    else:
        with pytest.raises(ValueError, match="cannot be merged"):
            jax.eval_shape(merged, base)
