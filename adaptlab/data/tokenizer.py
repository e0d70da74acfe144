"""A model's own tokenizer: text to ids and back, and how many bytes of text each id stands for.

Language models have byte-level BPE (GPT-2, Llama 3, Qwen, SmolLM …): there every token stands for a fixed number of
UTF-8 bytes, so bits per byte are exact. Encoders of BERT's kind have WordPiece, which folds letters and drops white
space: its tokens stand for no number of bytes.

`encode` never adds a special token, and the name of one that occurs in a
document (`<|im_end|>` in a manual) is encoded as the plain text it is: a corpus cannot inject control tokens.
A vocabulary may lack some bytes (SmolLM2's has none for six ASCII control characters); they are left out, as
everywhere with it.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int32
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Engine

from adaptlab.gguf import load_gguf_header
from adaptlab.source import Source

__all__ = ["Tokenizer", "gguf_tokenizer", "json_tokenizer", "load_tokenizer"]

_CONTROL, _USER_DEFINED = 3, 4  # values of tokenizer.ggml.token_type


class Tokenizer(NamedTuple):
    """Pure functions between texts and ids.

    encode: texts -> one int32 array of ids each, without any special token.
    decode: ids -> text; special tokens are written out.
    token_bytes_V: the number of UTF-8 bytes each token stands for; 0 for special and unused ids, and throughout where
      tokens stand for no fixed number.
    digest: the SHA-256 of what defines the tokenizer.
    frame: the ids in front of and behind a text as the model was trained on it, such as BERT's [CLS] and [SEP].
    """

    encode: Callable[[Sequence[str]], list[np.ndarray]]
    decode: Callable[[Sequence[int] | np.ndarray], str]
    token_bytes_V: Int32[np.ndarray, "V"]
    vocab_size: int
    digest: str
    frame: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())


def load_tokenizer(source: Source) -> Tokenizer:
    """Return the tokenizer in a base model's source: a GGUF file, a tokenizer.json or a folder with one."""
    path = source.fetch()
    if path.is_dir():
        path = path / "tokenizer.json"
        if not path.exists():
            raise ValueError(f"{path.parent} of {source.name} has no tokenizer.json")
    readers = {".gguf": gguf_tokenizer, ".json": json_tokenizer}
    if path.suffix not in readers:
        raise ValueError(
            f"{path} of {source.name} holds no tokenizer that can be read: expected a file ending in "
            f"{' or '.join(readers)}, or a folder with tokenizer.json"
        )
    return readers[path.suffix](path)


def gguf_tokenizer(path: Path) -> Tokenizer:
    """Return the byte-level BPE tokenizer in a GGUF file's metadata.

    Raises:
      ValueError: another kind of vocabulary, or a pre-tokenizer (`tokenizer.ggml.pre`) not known here.
    """
    metadata = load_gguf_header(path).metadata
    names = {name: f"tokenizer.ggml.{name}" for name in ("model", "pre", "tokens", "merges", "token_type")}
    if missing := [key for key in names.values() if key not in metadata]:
        raise ValueError(f"{path} lacks the metadata {', '.join(missing)}: it is no byte-level BPE tokenizer")
    content = {name: metadata[key] for name, key in names.items()}
    if content["model"] != "gpt2":
        raise ValueError(f"{path}: tokenizer.ggml.model is {content['model']!r}; only 'gpt2' (byte-level BPE) is read")
    if content["pre"] not in _PRE_TOKENIZERS:
        raise ValueError(
            f"{path}: tokenizer.ggml.pre is {content['pre']!r}; known are "
            f"{', '.join(sorted(_PRE_TOKENIZERS))}. Use the model's tokenizer.json instead."
        )
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return _tokenizer(_gguf_engine(**content), digest)


def json_tokenizer(path: Path) -> Tokenizer:
    """Return the tokenizer of a Hugging Face `tokenizer.json`; ValueError if it is neither byte-level nor WordPiece."""
    text = path.read_bytes()
    engine = Engine.from_str(text.decode())
    if not isinstance(engine.decoder, decoders.ByteLevel) and not isinstance(engine.model, models.WordPiece):
        raise ValueError(
            f"{path} is {type(engine.model).__name__} and decodes by {type(engine.decoder).__name__}: only byte-level "
            "tokenizers and WordPiece are read, because in others a token stands for no fixed number of bytes"
        )
    engine.no_padding()
    engine.no_truncation()
    return _tokenizer(engine, hashlib.sha256(text).hexdigest())


def _tokenizer(engine: Engine, digest: str) -> Tokenizer:
    engine.encode_special_tokens = True  # the names of special tokens in a text are text

    def encode(texts: Sequence[str]) -> list[np.ndarray]:
        encodings = engine.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, np.int32) for encoding in encodings]

    def decode(ids: Sequence[int] | np.ndarray) -> str:
        return engine.decode([int(i) for i in ids], skip_special_tokens=False)

    token_bytes_V = _token_bytes(engine)
    if not isinstance(engine.decoder, decoders.ByteLevel):
        token_bytes_V = np.zeros_like(token_bytes_V)
    return Tokenizer(encode, decode, token_bytes_V, len(token_bytes_V), digest, _frame(engine))


def _frame(engine: Engine) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """What the engine's own template puts around a text."""
    encoding = engine.encode("a")
    own = [i for i, special in enumerate(encoding.special_tokens_mask) if not special] or [len(encoding.ids)]
    return tuple(encoding.ids[: own[0]]), tuple(encoding.ids[own[-1] + 1 :])


def _token_bytes(engine: Engine) -> Int32[np.ndarray, "V"]:
    """Count the bytes of each token: in the byte-level alphabet each character is one byte."""
    vocabulary = engine.get_vocab(with_added_tokens=True)
    token_bytes_V = np.zeros(max(vocabulary.values()) + 1, np.int32)
    for token, index in vocabulary.items():
        token_bytes_V[index] = len(token)
    for index, added in engine.get_added_tokens_decoder().items():  # these are plain text, not the alphabet
        token_bytes_V[index] = 0 if added.special else len(added.content.encode())
    return token_bytes_V


def _gguf_engine(model: str, pre: str, tokens: list[str], merges: list[str], token_type: list[int]) -> Engine:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    # A merge is "left right"; the search starts at 1 because the left part is never empty.
    pairs = [(merge[: (cut := merge.index(" ", 1))], merge[cut + 1 :]) for merge in merges]
    engine = Engine(models.BPE(vocabulary, pairs, ignore_merges=pre == "llama-bpe"))
    engine.pre_tokenizer = _PRE_TOKENIZERS[pre]()
    engine.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        engine.normalizer = normalizers.NFC()
    kinds = list(zip(tokens, token_type, strict=True))
    engine.add_special_tokens([AddedToken(t, normalized=False) for t, kind in kinds if kind == _CONTROL])
    engine.add_tokens([AddedToken(t, normalized=False) for t, kind in kinds if kind == _USER_DEFINED])
    return engine


def _byte_level(use_regex: bool) -> Any:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=use_regex)


def _pattern(digits: str) -> Any:
    """The split of GPT-4's family: contractions, words, numbers of so many digits, the rest, white space."""
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+[\r\n]*"
        r"|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), _byte_level(False)])


_PRE_TOKENIZERS: dict[str, Callable[[], Any]] = {
    "gpt-2": lambda: _byte_level(True),
    "smollm": lambda: pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _byte_level(True)]),
    "llama-bpe": lambda: _pattern(r"\p{N}{1,3}"),
    "qwen2": lambda: _pattern(r"\p{N}"),
}
