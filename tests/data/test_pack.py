import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from adaptlab.data import Batch, empty_batch, pack

# Every token of all documents is different, so that a token's number says where it comes from.
SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=8)
LENGTHS = st.integers(1, 10)


def documents_of(sizes: list[int]) -> list[np.ndarray]:
    ends = np.cumsum(sizes)
    return [np.arange(end - size, end) + 1000 for size, end in zip(sizes, ends, strict=True)]


@given(sizes=SIZES, length=LENGTHS)
def test_each_token_but_the_first_of_each_document_is_predicted_exactly_once(sizes: list[int], length: int):
    assume(max(sizes) > 1)
    documents = documents_of(sizes)
    batch = pack(documents, length)
    predicted = batch.targets[batch.weights == 1]
    np.testing.assert_array_equal(np.sort(predicted), np.concatenate([document[1:] for document in documents]))
    np.testing.assert_array_equal(batch.tokens[batch.weights == 1] + 1, predicted)


@given(sizes=SIZES, length=LENGTHS)
def test_rows_are_the_documents_one_after_another(sizes: list[int], length: int):
    assume(max(sizes) > 1)
    stream = np.concatenate(documents_of(sizes))
    batch = pack(documents_of(sizes), length)
    for row in range(len(batch.tokens)):
        inputs, targets = (stream[row * length + i : (row + 1) * length + i] for i in (0, 1))
        np.testing.assert_array_equal(batch.tokens[row, : len(inputs)], inputs)
        np.testing.assert_array_equal(batch.targets[row, : len(targets)], targets)
        assert not batch.tokens[row, len(inputs) :].any()
        assert not batch.targets[row, len(targets) :].any()


@given(sizes=SIZES, length=LENGTHS)
def test_segments_are_the_documents_in_a_row_and_positions_restart_with_them(sizes: list[int], length: int):
    assume(max(sizes) > 1)
    batch = pack(documents_of(sizes), length)
    owner = {token: i for i, document in enumerate(documents_of(sizes)) for token in document}
    for tokens, segments, positions, weights in zip(
        batch.tokens, batch.segments, batch.positions, batch.weights, strict=True
    ):
        seen: list[int] = []
        for column, token in enumerate(tokens):
            if token == 0:
                assert (segments[column], positions[column], weights[column]) == (0, 0, 0)
                continue
            if not seen or seen[-1] != owner[token]:
                seen.append(owner[token])
                start = column
            assert (segments[column], positions[column]) == (len(seen), column - start)


@given(sizes=SIZES, length=LENGTHS)
def test_all_parts_have_one_shape_and_the_promised_types(sizes: list[int], length: int):
    assume(max(sizes) > 1)
    batch = pack(documents_of(sizes), length)
    rows = -(-(sum(sizes) - 1) // length)
    assert {part.shape for part in batch} == {(rows, length)}
    assert [part.dtype for part in batch] == [np.int32] * 4 + [np.float32]


def test_an_example_by_hand():
    batch = pack([np.array([5, 6, 7]), np.array([8]), np.array([9, 10, 11, 12])], 3)
    expected = Batch(
        tokens=np.array([[5, 6, 7], [8, 9, 10], [11, 12, 0]]),
        targets=np.array([[6, 7, 8], [9, 10, 11], [12, 0, 0]]),
        segments=np.array([[1, 1, 1], [1, 2, 2], [1, 1, 0]]),
        positions=np.array([[0, 1, 2], [0, 0, 1], [0, 1, 0]]),
        weights=np.array([[1, 1, 0], [0, 1, 1], [1, 0, 0]]),
    )
    for part, wanted in zip(batch, expected, strict=True):
        np.testing.assert_array_equal(part, wanted)


def test_no_pair_to_predict_and_no_length_are_errors():
    with pytest.raises(ValueError, match="nothing to predict"):
        pack([np.array([1]), np.array([], int)], 4)
    with pytest.raises(ValueError, match="nothing to predict"):
        pack([], 4)
    with pytest.raises(ValueError, match="length=0"):
        pack([np.array([1, 2])], 0)


def test_padding_weighs_nothing():
    assert all(not part.any() and part.shape == (2, 5) for part in empty_batch(2, 5))
