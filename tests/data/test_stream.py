import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptlab.data import Batch, fixed_batches, make_stream, pack


def packed_rows(rows: int, length: int = 4) -> Batch:
    """Rows that are recognised by their first token: 1, 1 + length, …"""
    return pack([np.arange(1, rows * length + 2)], length)


def row_ids(batch: Batch) -> list[int]:
    return ((batch.tokens[:, 0] - 1) // batch.tokens.shape[1]).tolist()


@given(rows=st.integers(1, 12), data=st.data(), seed=st.integers(0, 5))
def test_every_row_comes_once_an_epoch_even_when_batches_span_epochs(rows: int, data: st.DataObject, seed: int):
    batch_size = data.draw(st.integers(1, rows))
    stream = make_stream(packed_rows(rows), batch_size, seed)
    drawn = [row for step in range(3 * rows) for row in row_ids(stream(step))]
    for epoch in range(3 * batch_size):
        assert sorted(drawn[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@given(steps=st.lists(st.integers(0, 10**12), min_size=1, max_size=6))
def test_a_batch_depends_on_nothing_but_seed_and_step(steps: list[int]):
    packed = packed_rows(7)
    used, fresh = make_stream(packed, 3, seed=1), lambda step: make_stream(packed, 3, seed=1)(step)
    for step in steps:
        for part, again in zip(used(step), fresh(step), strict=True):
            np.testing.assert_array_equal(part, again)


def test_seed_name_and_epoch_each_change_the_order():
    packed = packed_rows(50)
    orders = {
        tuple(row_ids(make_stream(packed, 50, seed, name)(step)))
        for seed in (0, 1)
        for name in ("train", "replay")
        for step in (0, 1)
    }
    assert len(orders) == 8


@given(rows=st.lists(st.integers(0, 5), unique=True, min_size=1).map(sorted), step=st.integers(0, 40))
def test_the_rows_of_a_host_are_those_rows_of_the_global_batch(rows: list[int], step: int):
    packed = packed_rows(10)
    whole, share = make_stream(packed, 6, seed=3)(step), make_stream(packed, 6, 3, rows=rows)(step)
    for part, piece in zip(whole, share, strict=True):
        np.testing.assert_array_equal(part[rows], piece)


def test_a_batch_that_cannot_be_drawn_is_an_error_with_a_remedy():
    for batch_size in (0, 4):
        with pytest.raises(ValueError, match=r"3 rows of 4 tokens for batch_size=.*Use a smaller batch"):
            make_stream(packed_rows(3), batch_size, 0)
    for rows in ([0, 3], [-1]):
        with pytest.raises(ValueError, match=r"rows=.* of batch_size=3: expected rows from 0 to 2"):
            make_stream(packed_rows(3), 3, 0, rows=rows)
    with pytest.raises(ValueError, match="step=-1"):
        make_stream(packed_rows(3), 3, 0)(-1)


@given(rows=st.integers(1, 12), batch_size=st.integers(1, 8), wanted=st.none() | st.integers(1, 15))
def test_fixed_batches_are_the_first_rows_in_order_and_padding_weighs_nothing(
    rows: int, batch_size: int, wanted: int | None
):
    packed = packed_rows(rows)
    batches = fixed_batches(packed, batch_size, wanted)
    assert {part.shape for batch in batches for part in batch} == {(batch_size, 4)}
    kept = min(rows, wanted or rows)
    for part, whole in zip(zip(*batches, strict=True), packed, strict=True):
        joined = np.concatenate(part)
        np.testing.assert_array_equal(joined[:kept], whole[:kept])
        assert not joined[kept:].any()
        assert joined.dtype == whole.dtype


def test_no_rows_and_senseless_sizes_are_errors():
    with pytest.raises(ValueError, match="there are no rows"):
        fixed_batches(Batch(*(part[:0] for part in packed_rows(1))), 2)
    for batch_size, rows in ((0, 1), (1, 0)):
        with pytest.raises(ValueError, match="at least 1 of each"):
            fixed_batches(packed_rows(1), batch_size, rows)
