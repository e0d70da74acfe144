import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import yaml

import adaptlab.data
import adaptlab.source
from adaptlab.data import Corpus, Tokenizer, load_domain, make_corpus, split
from adaptlab.data import domain as domain_module

CONF = Path(__file__).parents[2] / "conf" / "domain"
CORPUS = make_corpus("letters", [f"document {i:04d} " + "abc" * (i % 7) for i in range(300)], "CC0", {"kind": "test"})


def byte_tokenizer() -> Tokenizer:
    """One token a byte, and one special token that no text gives; counts the documents it encodes."""

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        return [np.frombuffer(text.encode(), np.uint8).astype(np.int32) for text in texts]

    sizes = np.array([1] * 256 + [0], np.int32)
    return Tokenizer(encode, lambda ids: bytes(ids).decode(), sizes, 257, "bytes")


def decoded(batch: adaptlab.data.Batch) -> bytes:
    return bytes(batch.tokens[batch.segments > 0].astype(np.uint8).tolist())


def test_both_sides_hold_their_documents_and_no_others():
    made = load_domain(CORPUS, byte_tokenizer(), length=16, held_out=0.2)
    for packed, side in zip((made.train, made.held_out), split(CORPUS, 0.2), strict=True):
        whole = "".join(side.documents).encode()
        assert decoded(packed) in (whole, whole[:-1])  # the last token is no input where it would begin a row
    assert made.name == "letters"


def test_the_provenance_is_json_and_says_what_was_used():
    made = load_domain(CORPUS, byte_tokenizer(), 16, 0.2, max_train_tokens=500)
    record = json.loads(json.dumps(made.provenance))
    parts = split(CORPUS, 0.2)
    assert record["digest"] == CORPUS.digest
    assert (record["licence"], record["origin"], record["tokenizer"]) == ("CC0", {"kind": "test"}, "bytes")
    assert record["train"]["digest"] == parts.train.digest
    assert record["held_out"]["digest"] == parts.held_out.digest
    assert record["train"]["tokens_used"] == record["train"]["bytes_used"] == 500
    assert record["train"]["documents_used"] < record["train"]["documents"] == len(parts.train.documents)
    assert record["held_out"]["documents_used"] == record["held_out"]["documents"]
    again = load_domain(CORPUS, byte_tokenizer(), 32, 0.2, max_train_tokens=500).provenance
    assert again["train"] == record["train"]
    other = load_domain(CORPUS, byte_tokenizer(), 16, 0.2, max_train_tokens=499).provenance
    assert other["train"]["tokens_sha256"] != record["train"]["tokens_sha256"]


def test_a_smaller_sample_is_the_beginning_of_a_larger_one():
    small, large = (load_domain(CORPUS, byte_tokenizer(), 8, max_train_tokens=n).train for n in (400, 800))
    assert decoded(large).startswith(decoded(small))


def test_only_as_much_as_is_wanted_is_encoded(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(domain_module, "_CHUNK_CHARACTERS", 100)
    tokenizer, encoded = byte_tokenizer(), []
    counting = tokenizer._replace(encode=lambda texts: encoded.extend(texts) or tokenizer.encode(texts))
    load_domain(CORPUS, counting, 8, max_train_tokens=200, max_held_out_tokens=100)
    assert sum(map(len, encoded)) < 600


def test_long_documents_can_be_cut_so_that_more_take_part():
    made = load_domain(CORPUS, byte_tokenizer(), 8, max_document_tokens=5, max_held_out_tokens=50)
    assert made.provenance["held_out"]["documents_used"] == 10
    assert made.provenance["train"]["tokens_used"] == 5 * made.provenance["train"]["documents"]


def test_a_domain_that_is_only_measured_has_no_training_rows():
    made = load_domain(CORPUS, byte_tokenizer(), 8, max_train_tokens=0)
    assert made.train.tokens.shape == (0, 8)
    assert made.provenance["train"]["tokens_used"] == 0


def test_senseless_limits_are_errors():
    for limits in ({"max_held_out_tokens": 0}, {"max_train_tokens": -1}, {"max_document_tokens": 1}):
        with pytest.raises(ValueError, match=r"max_held_out_tokens=0|token limits"):
            load_domain(CORPUS, byte_tokenizer(), 8, **limits)


def instantiated(node: object) -> object:
    """What the config's door does with a call tree, without the config library."""
    if not isinstance(node, dict):
        return node
    arguments = {key: instantiated(value) for key, value in node.items() if key != "_target_"}
    if "_target_" not in node:
        return arguments
    room, name = node["_target_"].rsplit(".", 1)
    return getattr({"adaptlab.data": adaptlab.data, "adaptlab.source": adaptlab.source}[room], name)(**arguments)


def test_the_text_yaml_reads_a_file_of_the_user(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("one\n\ntwo\n")
    node = yaml.safe_load((CONF / "text.yaml").read_text())
    assert node["path"] == "???"
    corpus = instantiated({**node, "path": str(tmp_path / "mine.txt")})
    assert isinstance(corpus, Corpus)
    assert (corpus.name, corpus.documents) == ("mine", ("one", "two\n"))


DOCUMENTS = {
    "bbc_news": 2123,
    "dutch_speeches": 992,
    "english_news": 3781,
    "english_speeches": 989,
    "german_speeches": 990,
    "health_tweets": 62205,
    "spanish_speeches": 963,
}


@pytest.mark.real
@pytest.mark.parametrize("name", DOCUMENTS)
def test_a_real_corpus_has_the_known_number_of_documents(name: str):
    corpus = instantiated(yaml.safe_load((CONF / f"{name}.yaml").read_text()))
    assert isinstance(corpus, Corpus)
    assert (corpus.name, len(corpus.documents)) == (name, DOCUMENTS[name])
    assert corpus.licence
    assert len(split(corpus).held_out.documents) == pytest.approx(DOCUMENTS[name] / 10, rel=0.2)


def test_the_python_source_is_millions_of_characters_without_tests():
    corpus = instantiated(yaml.safe_load((CONF / "python_source.yaml").read_text()))
    assert isinstance(corpus, Corpus)
    assert sum(map(len, corpus.documents)) > 4e6
    assert not any("import idlelib\n" in text or "from test.support import" in text for text in corpus.documents)
