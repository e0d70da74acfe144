import doctest
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import tree
from adaptlab.adapt import frozen, full, lora, partition, scratch, simple

BASE = {"body": {"kernel": jnp.ones((3, 4)), "scale": jnp.ones(3)}, "head": {"kernel": jnp.ones((4, 2))}}
KEY = jax.random.key(0)


def test_full_starts_as_a_copy_and_not_as_the_base_itself():
    delta = full().init(KEY, BASE)
    assert tree.digest(delta) == tree.digest(BASE)
    assert all(x is not y for x, y in zip(jax.tree.leaves(delta), jax.tree.leaves(BASE), strict=True))


def test_frozen_trains_nothing():
    assert tree.count(frozen().init(KEY, BASE)) == 0
    assert frozen().bind(BASE, {}) is BASE


def test_the_first_pattern_that_matches_a_path_decides():
    delta = partition({"body/kernel": lora(1, select=".*"), "body/.*": full(), ".*": frozen()}).init(KEY, BASE)
    assert {p: x.shape for p, x in tree.flatten(delta).items()} == {
        "body/kernel/a": (3, 1),
        "body/kernel/b": (1, 4),
        "body/scale": (3,),
    }


def test_parts_do_not_touch_each_others_paths():
    adaptation = partition({"body/.*": full(), ".*": frozen()})
    moved = jax.tree.map(lambda x: x + 1, adaptation.init(KEY, BASE))
    bound = adaptation.bind(BASE, moved)
    np.testing.assert_array_equal(bound["body"]["kernel"], np.full((3, 4), 2))
    assert bound["head"]["kernel"] is BASE["head"]["kernel"]
    assert jax.tree.structure(bound) == jax.tree.structure(BASE)


def test_a_partition_into_one_is_that_one():
    whole = partition({".*": full()})
    assert tree.digest(whole.init(KEY, BASE)) == tree.digest(full().init(KEY, BASE))


def test_paths_that_no_pattern_covers_are_an_error():
    with pytest.raises(ValueError, match=r"covers no \['head/kernel'\]; add '\.\*': frozen\(\)"):
        partition({"body/.*": full()}).init(KEY, BASE)


def test_a_pattern_that_matches_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"Selector 'tail/.*' matches nothing"):
        partition({"tail/.*": full(), ".*": frozen()}).init(KEY, BASE)


def test_docstring_examples_hold():
    assert doctest.testmod(simple).failed == 0


def test_training_from_scratch_starts_from_the_models_own_weights_and_never_sees_the_bases():
    def fresh(key: jax.Array) -> Any:
        return {"w": jax.random.normal(key, (3,))}

    base = {"w": jnp.full(3, jnp.nan)}
    adaptation = scratch(fresh=fresh)
    one, other = (adaptation.init(jax.random.key(seed), base) for seed in (0, 1))
    assert not np.array_equal(one["w"], other["w"])
    assert adaptation.bind(base, one) is one
    np.testing.assert_array_equal(one["w"], fresh(jax.random.key(0))["w"])
