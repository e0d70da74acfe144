"""docs/add-a-method.md, executed: its method keeps the laws, its yaml makes it, and it is as short as promised."""

import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from adaptlab import config, leaf
from tests.laws import table
from tests.laws import test_adaptations as laws

PAGE = (Path(__file__).parents[2] / "docs" / "add-a-method.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
FILE, ROW = [text for kind, text in BLOCKS if kind == "python"]
(YAML,) = [text for kind, text in BLOCKS if kind == "yaml"]


@pytest.fixture(scope="module")
def method() -> Iterator[Any]:
    """The page's file, importable under the name that the page gives it."""
    module = types.ModuleType("adaptlab.adapt.krona")
    sys.modules[module.__name__] = module
    exec(compile(FILE, "docs/add-a-method.md", "exec"), module.__dict__)
    yield module
    del sys.modules[module.__name__]


@pytest.fixture(scope="module", params=["mlp", "llama_tied"])
def case(request: pytest.FixtureRequest, method: Any) -> table.Case:
    rows = eval(f"{{{ROW}}}", vars(table) | {"krona": method.krona})
    model = table.MODELS[request.param]
    base = table.scattered(jax.jit(model.model.init)(jax.random.key(0)), 0)
    return table.Case(model, rows["krona"], base, base)


def test_the_pages_method_keeps_the_laws(case: table.Case):
    delta = table.scattered(case.adaptation().init(jax.random.key(1), case.base), 1, scale=0.1)
    gradient = jax.jit(jax.value_and_grad(laws.objective(case)))
    # The laws assert.
    laws.test_an_adapted_model_starts_as_the_base(case)
    laws.test_the_bound_model_is_the_merged_model(case, delta)
    laws.test_every_part_of_the_delta_gets_a_gradient(case, delta, gradient)
    laws.test_many_deltas_at_once_are_each_alone(case, delta, gradient)
    laws.test_eight_devices_give_what_one_gives(case, delta, gradient)
    laws.test_the_hessian_of_the_objective_is_symmetric(case, delta)
    laws.test_as_many_parameters_train_as_the_formula_says(case, delta)
    laws.test_every_array_of_the_delta_has_its_axes(case, delta)


def test_the_pages_yaml_makes_its_method(method: Any):
    node = config.validate(yaml.safe_load(YAML), "adapt")
    base = {"layers": {"q": {"kernel": jnp.ones((2, 32, 48))}}}
    delta = config.instantiate(node).init(jax.random.key(0), base)["layers"]["q"]["kernel"]
    assert {name: x.shape for name, x in delta.items()} == {"a": (2, 2, 3), "b": (2, 16, 16)}
    with pytest.raises(config.ConfigError, match="block"):
        config.validate(yaml.safe_load(YAML.replace("block:", "blokc:")), "adapt")


def test_an_update_has_the_product_of_the_ranks(method: Any):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 2)) @ rng.normal(size=(2, 4)), rng.normal(size=(5, 3)) @ rng.normal(size=(3, 5))
    w, a, b = np.zeros((30, 20)), jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    node = method.PlusKronecker(jnp.asarray(w, jnp.float32), a, b, jnp.asarray(1.0))
    assert np.linalg.matrix_rank(leaf.dense(node)) == 6
    rows = leaf.take(node, jnp.asarray([[0, 29], [7, 7]]), jnp.float32)
    np.testing.assert_allclose(rows, leaf.dense(node)[np.asarray([[0, 29], [7, 7]])], rtol=1e-6)


def test_a_new_method_is_less_than_a_hundred_lines():
    lines = [line for text in (FILE, YAML, ROW) for line in text.splitlines() if line.strip()]
    assert len(lines) < 100
