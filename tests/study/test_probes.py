"""What runs begin with is measured once, if it is the same to the last bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import adapt
from adaptlab.study.probes import beginning_probe

BASE = {"w": np.arange(6.0, dtype=np.float32).reshape(2, 3)}


class Counted:
    """Measures a model made by `bind`, and counts how often."""

    def __init__(self, bind: Any) -> None:
        self.bind, self.count = bind, 0

    def __call__(self, numbers: Any, base: Any, delta: Any) -> dict[str, float]:
        self.count += 1
        return {"sum": float(jnp.sum(self.bind(numbers, base, delta)["w"]))}


def whole(numbers: Any, base: Any, delta: Any) -> Any:
    return adapt.full().bind(base, delta)


def scaled(numbers: Any, base: Any, delta: Any) -> Any:
    return {"w": base["w"] + numbers["alpha"] * delta["w"]}


def numbers(**changes: float) -> dict[str, jax.Array]:
    return {k: jnp.float32(v) for k, v in ({"alpha": 1.0, "lr": 0.1} | changes).items()}


def test_equal_beginnings_are_measured_once_whatever_numbers_the_model_does_not_see():
    probe = Counted(whole)
    once = beginning_probe(probe, whole)
    found = [once(numbers(lr=lr), BASE, jax.tree.map(jnp.asarray, BASE)) for lr in (0.1, 0.2, 0.3)]
    assert probe.count == 1
    assert found == [{"sum": 15.0}] * 3


def test_what_was_found_is_each_runs_own():
    once = beginning_probe(Counted(whole), whole)
    once(numbers(), BASE, BASE)["sum"] = 0.0
    assert once(numbers(), BASE, BASE) == {"sum": 15.0}


@pytest.mark.parametrize("position", [0, 5])
def test_another_last_bit_is_another_beginning(position: int):
    probe = Counted(whole)
    once = beginning_probe(probe, whole)
    other = np.array(BASE["w"])
    other.flat[position] = np.nextafter(other.flat[position], np.float32(np.inf))
    for w in (BASE["w"], other, BASE["w"]):
        once(numbers(), BASE, {"w": jnp.asarray(w)})
    assert probe.count == 2


def test_a_number_that_the_model_sees_makes_another_beginning():
    probe = Counted(scaled)
    once = beginning_probe(probe, scaled)
    sums = [once(numbers(alpha=alpha, lr=lr), BASE, BASE)["sum"] for alpha in (1.0, 2.0) for lr in (0.1, 0.2)]
    assert sums == [30.0, 30.0, 45.0, 45.0]
    assert probe.count == 2


def test_dtype_and_shape_count():
    probe = Counted(lambda numbers, base, delta: delta)
    once = beginning_probe(probe, lambda numbers, base, delta: delta)
    zeros = [jnp.zeros((2, 3)), jnp.zeros((3, 2)), jnp.zeros((2, 3), jnp.int32), jnp.zeros((2, 6), jnp.bfloat16)]
    for w in zeros + zeros:
        once(numbers(), BASE, {"w": w})
    assert probe.count == 4
