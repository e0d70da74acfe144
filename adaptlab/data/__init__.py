"""Text, plain or labelled: corpora, tokenizers, splits, packing, and batches as a function of (seed, step)."""

from adaptlab.data.corpus import (
    Corpus,
    csv_corpus,
    fingerprint,
    folder_corpus,
    local_text,
    make_corpus,
    text_corpus,
)
from adaptlab.data.domain import Domain, load_domain
from adaptlab.data.labelled import (
    Labelled,
    LabelledBatch,
    LabelledRows,
    labelled_folder,
    labelled_table,
    load_labelled,
    make_labelled,
    padded_rows,
)
from adaptlab.data.pack import Batch, empty_batch, pack
from adaptlab.data.split import Split, check_disjoint, split
from adaptlab.data.stream import fixed_batches, make_stream
from adaptlab.data.tokenizer import Tokenizer, gguf_tokenizer, json_tokenizer, load_tokenizer

__all__ = [
    "Batch",
    "Corpus",
    "Domain",
    "Labelled",
    "LabelledBatch",
    "LabelledRows",
    "Split",
    "Tokenizer",
    "check_disjoint",
    "csv_corpus",
    "empty_batch",
    "fingerprint",
    "fixed_batches",
    "folder_corpus",
    "gguf_tokenizer",
    "json_tokenizer",
    "labelled_folder",
    "labelled_table",
    "load_domain",
    "load_labelled",
    "load_tokenizer",
    "local_text",
    "make_corpus",
    "make_labelled",
    "make_stream",
    "pack",
    "padded_rows",
    "split",
    "text_corpus",
]
