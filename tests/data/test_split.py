import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptlab.data import Corpus, check_disjoint, fingerprint, make_corpus, split

DOCUMENTS = [f"Speech number {i}" for i in range(400)]


def test_every_document_is_on_exactly_one_side_and_the_fraction_is_about_right():
    parts = split(make_corpus("x", DOCUMENTS), 0.2)
    assert sorted(parts.train.documents + parts.held_out.documents) == sorted(DOCUMENTS)
    # 400 draws at 0.2: 80 with a standard deviation of 8; the hash is fixed, so this cannot flake.
    assert 56 <= len(parts.held_out.documents) <= 104


@given(order=st.permutations(DOCUMENTS[:60]), added=st.integers(0, 100))
def test_no_document_moves_when_others_are_added_or_reordered(order: list[str], added: int):
    before = split(make_corpus("x", DOCUMENTS[:60]), 0.3)
    after = split(make_corpus("x", [*order, *DOCUMENTS[100 : 100 + added]]), 0.3)
    assert set(before.held_out.documents) <= set(after.held_out.documents)
    assert set(before.train.documents) <= set(after.train.documents)


def test_the_split_does_not_depend_on_the_order_of_the_documents():
    forwards, backwards = (split(make_corpus("x", order), 0.3) for order in (DOCUMENTS, DOCUMENTS[::-1]))
    assert forwards == backwards
    assert forwards.train.digest != forwards.held_out.digest


def test_what_is_held_out_stays_so_when_the_fraction_grows():
    small, large = (split(make_corpus("x", DOCUMENTS), f).held_out.documents for f in (0.1, 0.3))
    assert small == large[: len(small)]


def test_repetitions_in_other_letters_cannot_leak():
    documents = [*DOCUMENTS, *(text.upper().replace(" ", "\n ") for text in DOCUMENTS)]
    corpus = Corpus("x", tuple(documents), "", "", {})  # not cleaned by make_corpus
    parts = split(corpus, 0.3)
    prints = [fingerprint(text) for side in parts for text in side.documents]
    assert len(prints) == len(set(prints)) == len(DOCUMENTS)


def test_a_leak_is_reported_with_the_beginning_of_the_document():
    with pytest.raises(ValueError, match="also trained on: 'frau präsidentin'"):
        check_disjoint(["Frau  Präsidentin", "b"], ["c", "frau\npräsidentin"])
    check_disjoint(["a"], ["b"])


def test_an_empty_side_or_a_senseless_fraction_is_an_error_with_a_remedy():
    with pytest.raises(ValueError, match=r"'x' has 1 documents.*split=paragraph"):
        split(make_corpus("x", ["one long book"]))
    for fraction in (0.0, 1.0, -0.1, 10.0):
        with pytest.raises(ValueError, match="strictly between 0 and 1"):
            split(make_corpus("x", DOCUMENTS), fraction)
