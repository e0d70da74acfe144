from typing import Any

import pytest

from adaptlab.config import ConfigError, validate
from tests.config.factories import Study

HERE = "tests.config.factories"


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"_target_": f"{HERE}.{name}", **arguments}


def test_defaults_are_written_out():
    assert validate({"a": call("thing", size=3)}) == {
        "a": call("thing", size=3, rate=0.5, kind="plain", tags=[], inner=None)
    }


def test_a_validated_config_is_valid_and_stays_as_it_is():
    once = validate(call("thing", size=3, inner=call("thing", size=4), tags=["x"]))
    assert validate(once) == once


def test_a_whole_number_may_stand_for_a_float():
    assert validate(call("thing", size=3, rate=1))["rate"] == 1


def test_where_any_keyword_goes_none_is_unknown():
    assert validate(call("open_ended", first=1, anything="x")) == call("open_ended", first=1, anything="x")


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"a": call("thing", size=3, ratte=0.1)},
            r"^a\.ratte=0\.1: .*thing has no parameter 'ratte'\. Did you mean 'rate'",
        ),
        ({"a": call("thing", size=3, zzz=1)}, r"has no parameter 'zzz'\. It takes: \['inner', 'kind', 'rate', 'size'"),
        ({"a": {"b": call("thing")}}, r"^a\.b\.size: .*thing needs 'size'"),
        (call("thing", size="3"), r"^size='3': .*thing expects int, not str"),
        (call("thing", size=2.5), r"^size=2\.5: .*thing expects int, not float"),
        (call("thing", size=1, rate="fast"), r"^rate='fast': .*thing expects float, not str"),
        (call("thing", size=1, kind="even"), r"^kind='even': .*Literal\['plain', 'odd'\]"),
        (call("thing", size=call("thing", size=1)), r"^size=.*expects int, not dict"),
        (call("thing", size=1, tags=[1]), r"^tags=\[1\]: .*Sequence\[str\]"),
        (call("stretched", rate=1.0, limit="low"), r"^limit='low'.*expects float \| None, not str"),
        (call("stretched", rate=1.0, total_steps=3), r"total_steps=3: .*has no parameter 'total_steps'"),
        (call("thimg", size=1), r"has no factory 'thimg'\. Did you mean 'thing'"),
        ({"_target_": "adaptlab.nowhere.lora"}, r"cannot import 'adaptlab.nowhere'"),
        ({"_target_": "lora"}, r"cannot import ''"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_errors_name_the_path_the_value_and_the_nearest_choice(node: Any, message: str):
    with pytest.raises(ConfigError, match=message):
        validate(node)


@pytest.mark.parametrize(
    ("key", "value", "interval"),
    [
        ("count", 0, r"\[1, inf\)"),
        ("rate", -1e-9, r"\[0, inf\)"),
        ("rate", float("inf"), r"\[0, inf\)"),
        ("rate", float("nan"), r"\[0, inf\)"),
        ("clip", 0, r"\(0, inf\)"),
        ("share", 1.01, r"\[0, 1\]"),
        ("b1", 1.0, r"\[0, 1\)"),
    ],
)
def test_a_number_out_of_its_interval_is_refused(key: str, value: float, interval: str):
    with pytest.raises(ConfigError, match=rf"^a\.{key}={value!r}: .*bounded expects a number in {interval}\.$"):
        validate({"a": call("bounded", **{key: value})})


def test_numbers_in_their_intervals_and_null_pass():
    inside = call("bounded", count=1, used=1, rate=0, clip=1e-9, share=1, b1=0.999)
    assert validate(inside) == inside
    assert validate(call("bounded", clip=None))["clip"] is None


def test_a_number_larger_than_the_one_it_is_part_of_is_refused():
    assert validate(call("bounded", count=4, used=4))["used"] == 4
    with pytest.raises(ConfigError, match=r"^a\.used=4\.5: .*bounded expects at most count=4\.$"):
        validate({"a": call("bounded", count=4, used=4.5)})
    with pytest.raises(ConfigError, match=r"^used=2: .* at most count=1\.$"):  # the default
        validate(call("bounded", used=2))


def test_paths_lead_through_lists_and_dicts():
    node = {"a": [{"b": call("thing", size=1)}, {"c": call("thing", size=1, inner={"d": call("thing")})}]}
    with pytest.raises(ConfigError, match=r"^a\[1\]\.c\.inner\.d\.size: .*needs 'size'"):
        validate(node)


def test_a_schema_reaches_into_dataclasses_and_dicts_of_them():
    node = {"part": {"width": 1}, "parts": {"x": {"width": 2}}}
    complete = validate(node, schema=Study)
    assert complete["part"] == {"width": 1, "name": "part"}
    assert complete["parts"] == {"x": {"width": 2, "name": "part"}}
    with pytest.raises(ConfigError, match=r"^parts\.x\.widht=2: Part has no parameter 'widht'\. Did you mean 'width'"):
        validate({"part": {"width": 1}, "parts": {"x": {"width": 2, "widht": 2}}}, schema=Study)
    with pytest.raises(ConfigError, match=r"^part: Study needs 'part'"):
        validate({"parts": {}}, schema=Study)
    with pytest.raises(ConfigError, match=r"^sedes=\[1\]: Study has no parameter 'sedes'\. Did you mean 'seeds'"):
        validate(node | {"sedes": [1]}, schema=Study)
