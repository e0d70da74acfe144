"""The text of a study."""

import pytest

from adaptlab.config import ConfigError
from adaptlab.study.text import load_text


def test_an_upstream_domain_that_is_none_is_refused_with_the_way_to_leave_it_out():
    with pytest.raises(
        ConfigError, match=r"upstream.news=None is no corpus: .* leave it out with '~domain@upstream.news'"
    ):
        load_text({"upstream": {"news": None}})
