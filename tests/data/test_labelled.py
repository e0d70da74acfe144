import bz2
from pathlib import Path

import numpy as np
import pytest

from adaptlab import config
from adaptlab.data import (
    LabelledBatch,
    Tokenizer,
    fixed_batches,
    labelled_folder,
    labelled_table,
    load_labelled,
    make_labelled,
    make_stream,
    padded_rows,
)
from adaptlab.data.corpus import fingerprint
from adaptlab.source import local

PAIRS = [(f"text {i}", "ab"[i % 2]) for i in range(200)]
CODES = Tokenizer(
    lambda texts: [np.array([ord(c) for c in text], np.int32) for text in texts],
    lambda ids: "".join(map(chr, ids)),
    np.ones(256, np.int32),
    256,
    "codes",
    frame=((1,), (2,)),
)


def test_a_text_is_held_out_by_its_content_alone():
    whole = make_labelled("some", PAIRS, fraction=0.3)
    part = make_labelled("some", PAIRS[::-1][:120], fraction=0.3)
    assert set(part.held_out.texts) <= set(whole.held_out.texts)
    assert not set(part.train.texts) & set(whole.held_out.texts)
    assert len(whole.train.texts) + len(whole.held_out.texts) == 200
    assert 0.2 < len(whole.held_out.texts) / 200 < 0.4


def test_every_text_keeps_its_class_and_the_order_is_by_fingerprint():
    corpus, label = make_labelled("some", PAIRS), dict(PAIRS)
    for side in (corpus.train, corpus.held_out):
        assert [corpus.classes[i] for i in side.labels] == [label[text] for text in side.texts]
        assert list(side.texts) == sorted(side.texts, key=fingerprint)


def test_a_standard_split_keeps_its_held_out_side_whole_and_trains_on_none_of_it():
    train = [("one", "a"), ("ONE ", "a"), ("two", "b"), ("shared", "a"), (" ", "a")]
    test = [("shared", "a"), ("three", "b"), ("three", "b")]
    corpus = make_labelled("some", train, test)
    assert sorted(corpus.held_out.texts) == ["shared", "three", "three"]
    assert sorted(corpus.train.texts) == ["one", "two"]


@pytest.mark.parametrize(
    ("pairs", "test", "fraction", "message"),
    [
        (PAIRS, None, 1.0, "fraction=1.0"),
        ([("x", "a"), ("y", "a")], [("z", "a")], 0.2, "at least 2 classes"),
        (PAIRS, [("z", "c")], 0.2, r"the held-out classes \['c'\]"),
        (PAIRS, [], 0.2, "0 held-out texts"),
    ],
)
def test_what_cannot_be_classified_is_an_error(pairs: list, test: list | None, fraction: float, message: str):
    with pytest.raises(ValueError, match=message):
        make_labelled("some", pairs, test, fraction)


def test_a_folder_names_its_classes_and_leaves_out_what_it_cannot_read(tmp_path: Path):
    for label in ("cats", "dogs"):
        (tmp_path / label).mkdir()
        for i in range(20):
            (tmp_path / label / f"{i}.txt").write_text(f"{label} {i}")
    (tmp_path / "cats" / "bad.txt").write_bytes(b"\xff\xfe\xfa")
    corpus = labelled_folder(local(tmp_path), "pets", fraction=0.3)
    assert corpus.classes == ("cats", "dogs")
    assert len(corpus.train.texts) + len(corpus.held_out.texts) == 40
    assert all(text.startswith(corpus.classes[i]) for text, i in zip(*corpus.train, strict=True))


def test_tables_may_be_compressed_quoted_and_have_rows_that_are_no_texts(tmp_path: Path):
    rows = "".join(f'{"ab"[i % 2]},"say, ""{i}"""\n' for i in range(40)) + "plot,no\n"
    (tmp_path / "t.csv.bz2").write_bytes(bz2.compress(b"label,text\n" + rows.encode()))
    corpus = labelled_table(local(tmp_path / "t.csv.bz2"), "t", "text", "label", classes=["a", "b"], fraction=0.4)
    assert corpus.classes == ("a", "b")
    assert 'say, "3"' in (*corpus.train.texts, *corpus.held_out.texts)
    (tmp_path / "t.tab").write_text('label\ttext\nd\tstring\nclass\t\na\t"x\nb\ty\n')
    (tmp_path / "u.tab").write_text("label\ttext\nd\tstring\nclass\t\nb\tz\n")
    sides = (local(tmp_path / name) for name in ("t.tab", "u.tab"))
    corpus = labelled_table(next(sides), "t", "text", "label", test=next(sides), delimiter="\t", skip=2)
    assert (sorted(corpus.train.texts), corpus.held_out.texts) == (['"x', "y"], ("z",))
    with pytest.raises(ValueError, match=r"no column \['words'\]; it has label, text"):
        labelled_table(local(tmp_path / "t.tab"), "t", "words", "label", delimiter="\t")


def test_a_row_is_one_text_in_its_frame_cut_or_padded():
    tokens, segments = padded_rows(["abc", "abcdef"], CODES, 6)
    np.testing.assert_array_equal(tokens, [[1, 97, 98, 99, 2, 0], [1, 97, 98, 99, 100, 2]])
    np.testing.assert_array_equal(segments, tokens > 0)
    with pytest.raises(ValueError, match="length=2 leaves no room"):
        padded_rows(["abc"], CODES, 2)


def test_batches_are_a_function_of_seed_and_step_and_padding_weighs_nothing():
    rows = load_labelled(make_labelled("some", PAIRS), CODES, 12, max_train=50, max_held_out=7)
    assert (len(rows.train.tokens), len(rows.held_out.tokens)) == (50, 7)
    assert rows.provenance["train"]["texts_used"] == sum(rows.provenance["train"]["by_class"].values()) == 50
    batch = make_stream(rows.train, 8, seed=3)(11)
    assert isinstance(batch, LabelledBatch)
    for got, again in zip(batch, make_stream(rows.train, 8, seed=3)(11), strict=True):
        np.testing.assert_array_equal(got, again)
    epoch = np.concatenate([make_stream(rows.train, 10, seed=3)(step).tokens for step in range(5)])
    assert sorted(map(tuple, epoch)) == sorted(map(tuple, rows.train.tokens))
    first, last = fixed_batches(rows.held_out, 4)
    assert (first.weights.sum(), last.weights.sum(), last.tokens.shape) == (4, 3, (4, 12))


@pytest.mark.real
@pytest.mark.parametrize(
    ("task", "classes", "train", "held_out"),
    [
        ("bbc_news", 5, 1711, 412),
        ("r8", 8, 5419, 2189),
        ("r52", 52, 6444, 2568),
        ("rotten_tomatoes", 2, 10188, 2563),
    ],
)
def test_a_task_has_the_texts_its_yaml_says(task: str, classes: int, train: int, held_out: int):
    corpus = config.instantiate(config.compose(f"task/{task}")["task"])
    assert (len(corpus.classes), len(corpus.train.texts), len(corpus.held_out.texts)) == (classes, train, held_out)
