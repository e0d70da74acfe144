import pytest

from adaptlab.models.weights import match


def test_a_checkpoint_that_fits_is_silent():
    assert match({"a": (2, 3)}, {"a": (2, 3)}, "file") is None  # and raises nothing


def test_one_message_lists_what_is_missing_what_is_extra_and_what_has_another_shape():
    with pytest.raises(ValueError, match="here does not fit") as error:
        match({"a": (2, 3), "b": (4,), "c": (5,)}, {"b": (5,), "c": (5,), "d": (1,)}, "here")
    lines = str(error.value).splitlines()[1:]
    assert lines == [
        "  - a (2, 3): missing",
        "  + d (1,): not part of this model",
        "  ! b: expected (4,), found (5,)",
    ]
