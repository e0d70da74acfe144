import json
import subprocess
import sys
from pathlib import Path

import pytest

from adaptlab.data import json_tokenizer, make_corpus
from adaptlab.data.bpe import sample_text, train_bpe

TEXTS = [f"the cat number {i} sat on the mat, and the dog {i * 7} did not" for i in range(200)]


def test_a_learnt_tokenizer_gives_back_any_text_byte_for_byte(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text(train_bpe(TEXTS, 300))
    tokenizer = json_tokenizer(path)
    assert tokenizer.vocab_size == 300
    for text in (TEXTS[3], "Grüße, 東京 \t\n\x00 {}", "  def f():\n\treturn 'é'"):
        (ids,) = tokenizer.encode([text])
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes_V[ids].sum() == len(text.encode())


def test_what_is_frequent_becomes_one_token(tmp_path: Path):
    path = tmp_path / "tokenizer.json"
    path.write_text(train_bpe(TEXTS, 300))
    (ids,) = json_tokenizer(path).encode([" the mat"])
    assert len(ids) == 2


def test_the_same_texts_give_the_same_file_in_another_process():
    code = f"from adaptlab.data.bpe import train_bpe; print(train_bpe({TEXTS!r}, 320))"
    there = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(there.stdout) == json.loads(train_bpe(TEXTS, 320))


def test_a_vocabulary_that_cannot_be_filled_is_refused():
    with pytest.raises(ValueError, match="at least 256"):
        train_bpe(TEXTS, 255)
    with pytest.raises(ValueError, match="different pieces"):
        train_bpe(["ab"], 300)


def test_every_corpus_gives_equally_many_characters_and_no_document_more_than_its_share():
    corpora = {
        "long": make_corpus("long", ["x" * 1000, "y" * 1000]),
        "short": make_corpus("short", [c * 30 for c in "abcdefghij"]),
    }
    pieces = list(sample_text(corpora, characters=200, per_document=150))
    assert [piece[0] for piece in pieces] == [*"xy", *"abcdefg"]
    assert [len(piece) for piece in pieces[:2]] == [150, 50]
    assert sum(map(len, pieces[2:])) == 200
