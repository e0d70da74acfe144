"""A byte-level BPE tokenizer learnt from text (arXiv:1508.07909, over the bytes of UTF-8)."""

from collections.abc import Iterable, Iterator, Mapping

from tokenizers import Tokenizer as Engine
from tokenizers import decoders, models, pre_tokenizers, trainers

from adaptlab.data.corpus import Corpus

__all__ = ["sample_text", "train_bpe"]


def train_bpe(texts: Iterable[str], vocab_size: int) -> str:
    """Learn merges and return the `tokenizer.json` that holds them.

    The first 256 entries are the bytes, so any text can be encoded; each further one joins the most frequent pair of
    neighbours inside a word, words being cut as GPT-2 does. There are no special tokens.

    Args:
      texts: what to learn from; the same texts in the same order give the same file.
      vocab_size: V, the bytes included.

    Raises:
      ValueError: V is below 256, or the texts are too few for V.
    """
    if vocab_size < 256:
        raise ValueError(f"vocab_size={vocab_size}: expected at least 256, one entry for each byte")
    engine = Engine(models.BPE())
    engine.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    engine.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, initial_alphabet=alphabet, special_tokens=[], show_progress=False
    )
    engine.train_from_iterator(texts, trainer)
    if (found := engine.get_vocab_size()) != vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size}: the texts have only {found} different pieces; give more text or lower it"
        )
    return engine.to_str(pretty=True)


def sample_text(corpora: Mapping[str, Corpus], characters: int, per_document: int = 8000) -> Iterator[str]:
    """Yield the beginnings of each corpus's documents, in their order, up to equally many characters a corpus.

    Args:
      corpora: to sample; for a tokenizer, the training sides of a split.
      characters: from each corpus.
      per_document: no more than so many from one document, so that a few long ones do not fill the sample.
    """
    for corpus in corpora.values():
        left = characters
        for text in corpus.documents:
            piece = text[: min(per_document, left)]
            left -= len(piece)
            yield piece
            if left <= 0:
                break
