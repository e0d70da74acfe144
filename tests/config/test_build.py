from typing import Any

import jax
import jax.numpy as jnp
import pytest

from adaptlab.config import ConfigError, config_hash, fill, instantiate, merge, split, validate
from tests.config.factories import Thing
from tests.config.test_check import call

NODE = {
    "one": call("thing", size=3, rate=2.0, inner=call("thing", size=4, rate=0.25)),
    "many": {"a/.*": call("thing", size=1, rate=3), "b": 7.5},
    "plain": [1.0, {"rate": 2.0}],
}


def test_calls_are_made_innermost_first_wherever_they_stand():
    built = instantiate({"a": [call("thing", size=1, inner={"b": call("thing", size=2)})], "c": 3})
    assert built == {"a": [Thing(1, inner={"b": Thing(2)})], "c": 3}


def test_what_the_program_gives_reaches_the_outermost_factory_that_takes_it():
    assert instantiate(call("stretched", rate=1.0), total_steps=9, unused=1) == {
        "rate": 1.0,
        "total_steps": 9,
        "limit": None,
    }
    assert instantiate(call("thing", size=1), total_steps=9) == Thing(1)


def test_what_the_program_gives_reaches_the_inner_factories_that_ask_for_it_by_their_mark():
    node = call("thing", size=1, inner={"a": [call("stretched", rate=1.0)], "b": call("thing", size=2)})
    inner = instantiate(node, total_steps=9, kind="odd").inner
    assert inner["a"][0]["total_steps"] == 9
    assert inner["b"] == Thing(2)  # `kind` is its own affair


def test_a_factory_in_a_place_that_does_not_give_it_what_it_needs_is_refused_by_name():
    for node in (call("stretched", rate=1.0), call("thing", size=1, inner=call("stretched", rate=1.0))):
        with pytest.raises(ConfigError, match=r"stretched needs 'total_steps', which nothing gives it here"):
            instantiate(node, unused=1)


def test_what_is_given_cannot_be_written_too():
    with pytest.raises(ConfigError, match=r"stretched is given its 'total_steps' here: leave it out"):
        instantiate(call("stretched", rate=1.0, total_steps=8), total_steps=9)


def test_split_takes_out_the_numbers_that_may_be_traced_and_no_others():
    skeleton, numbers = split(NODE)
    assert numbers == {"one.rate": 2.0, "one.inner.rate": 0.25, "many.a/.*.rate": 3.0}
    assert {type(number) for number in numbers.values()} == {float}  # 3 and 3.0 are one program
    assert skeleton["one"]["size"] == 3
    assert skeleton["one"]["rate"] is None
    assert skeleton["plain"] == NODE["plain"]


def test_fill_undoes_split():
    assert fill(*split(NODE)) == NODE
    assert fill(*split(validate(NODE))) == validate(NODE)


def test_lists_of_numbers_that_may_be_traced_are_taken_out_one_by_one():
    node = {"a": call("stacked", each=[8, 0, 2.5], inner=call("stacked", each=[1], top=[3.0]))}
    skeleton, numbers = split(node)
    wanted = {"a.each[0]": 8.0, "a.each[1]": 0.0, "a.each[2]": 2.5, "a.inner.each[0]": 1.0, "a.inner.top[0]": 3.0}
    assert numbers == wanted
    assert skeleton["a"]["each"] == [None, None, None]
    assert fill(skeleton, numbers) == node
    assert fill(*split(validate(node))) == validate(node)
    part = fill(skeleton["a"], numbers | {"a.each[1]": 7.0}, "a")
    assert part["each"] == [8.0, 7.0, 2.5]


def test_lists_share_a_skeleton_if_they_are_as_long():
    first, other, longer = (split(call("stacked", each=each))[0] for each in ([1, 2], [3.0, 0], [1, 2, 3]))
    assert first == other != longer


def test_a_change_replaces_a_whole_list_of_numbers():
    node = validate({"a": call("stacked", each=[1, 2])})
    assert merge(node, {"a": {"each": [5.0]}})["a"]["each"] == [5.0]
    with pytest.raises(ConfigError, match=r"^a\.each=\['x'\]: .*stacked expects .*Sequence\[float\], not list"):
        merge(node, {"a": {"each": ["x"]}})


def test_configs_that_differ_in_traced_numbers_share_a_skeleton():
    other = NODE | {"one": NODE["one"] | {"rate": 5.0}}
    assert split(other)[0] == split(NODE)[0]
    assert split(NODE | {"one": NODE["one"] | {"size": 5}})[0] != split(NODE)[0]


def test_a_filled_skeleton_builds_inside_a_trace():
    skeleton, numbers = split(NODE["one"])

    @jax.jit
    def rate(numbers: dict[str, Any]) -> jax.Array:
        return instantiate(fill(skeleton, numbers)).inner.rate * 2.0

    assert rate({name: jnp.asarray(value) for name, value in numbers.items()}) == 0.5


def test_the_hash_is_of_the_content_and_stays_what_it_was():
    assert config_hash({"b": [1, 2.5], "a": None}) == config_hash({"a": None, "b": [1, 2.5]})
    assert config_hash({"a": 1}) != config_hash({"a": 2})
    assert config_hash({"a": 1}) == "015abd7f5cc57a2dd94b7590f04ad8084273905ee33ec5cebeae62276a97f862"
