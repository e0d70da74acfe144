"""LoRA+: claims about the updates themselves."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptlab import tree
from adaptlab.adapt import lora
from adaptlab.optim import adamw, sgd
from adaptlab.optim.group_rules import by_pattern, group, lora_plus
from tests.laws.table import scattered

BASE = {"layers": {"q": {"kernel": jnp.ones((2, 4, 3))}}}
DELTA = scattered(lora(2).init(jax.random.key(0), BASE), 0)
GRADS = scattered(jax.tree.map(jnp.zeros_like, DELTA), 1)


def moved(groups: Any, optimizer: Any = sgd, **options: Any) -> dict[str, np.ndarray]:
    """What the first update adds."""
    transform = optimizer(0.1, total_steps=4, groups=groups, **options)
    updates, _ = transform.update(GRADS, transform.init(DELTA), DELTA)
    return {path.rpartition("/")[2]: np.asarray(x) for path, x in tree.flatten(updates).items()}


@pytest.mark.parametrize(("optimizer", "options"), [(sgd, {}), (adamw, {"weight_decay": 0.1})])
def test_b_moves_by_the_ratio_and_a_as_without(optimizer: Any, options: dict[str, Any]):
    plain, faster = moved(None, optimizer, **options), moved(lora_plus(16.0), optimizer, **options)
    np.testing.assert_allclose(faster["b"], 16.0 * plain["b"], rtol=1e-6)
    np.testing.assert_array_equal(faster["a"], plain["a"])


def test_it_is_a_grouping_by_pattern():
    rules = by_pattern({".*/b": group(4.0), ".*": group()})
    for name, wanted in moved(rules).items():
        np.testing.assert_array_equal(moved(lora_plus(4.0))[name], wanted)


def test_the_ratio_may_be_traced_and_mapped_over():
    def b(ratio: Any) -> Any:
        transform = sgd(0.1, total_steps=4, groups=lora_plus(ratio))
        updates, _ = transform.update(GRADS, transform.init(DELTA), DELTA)
        moved: Any = optax.apply_updates(DELTA, updates)
        return moved["layers"]["q"]["kernel"]["b"]

    together = jax.jit(jax.vmap(b))(jnp.asarray([1.0, 8.0]))
    for i, ratio in enumerate((1.0, 8.0)):
        np.testing.assert_allclose(together[i], b(jnp.float32(ratio)), rtol=1e-6)


def test_a_delta_without_b_is_an_error():
    with pytest.raises(ValueError, match=r"Selector '\.\*/b' matches nothing"):
        lora_plus().rate({"head": {"kernel": jnp.ones(3)}})
