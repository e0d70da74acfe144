"""A classification study from the shell, on a tiny BERT with a word-piece tokenizer of its own."""

import json
from pathlib import Path

import jax
import numpy as np
import pytest

from adaptlab.models import BertShape, bert, save_hf
from tests.study.conftest import ROOT, finish, results

SHAPE = BertShape(vocab_size=300, width=16, depth=2, heads=2, ffn_width=24, context=32)
WORDS = {"cats": "purr meow whiskers kitten", "dogs": "bark fetch leash puppy"}


def tiny_encoder(folder: Path) -> Path:
    from tokenizers import BertWordPieceTokenizer
    from tokenizers.processors import TemplateProcessing

    save_hf(folder, SHAPE, jax.device_get(bert(SHAPE).init(jax.random.key(0))), context=32)
    tokenizer = BertWordPieceTokenizer()
    tokenizer.train_from_iterator([*WORDS.values(), *WORDS], vocab_size=300, min_frequency=1, show_progress=False)
    names = [(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = TemplateProcessing("[CLS] $A [SEP]", special_tokens=names)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides that make `experiments.classification` a matter of seconds."""
    base, pets = tiny_encoder(tmp_path_factory.mktemp("encoder")), tmp_path_factory.mktemp("pets")
    rng = np.random.default_rng(0)
    for label, words in WORDS.items():
        (pets / label).mkdir()
        for i in range(60):
            (pets / label / f"{i}.txt").write_text(f"{i} {' '.join(rng.choice(words.split(), 8))}")
    return [
        "base=local",
        f"base.weights.path={base}",
        "+base.model.pooling=mean",
        "task.source._target_=adaptlab.source.local",
        f"+task.source.path={pets}",
        *(f"~task.source.{key}" for key in ("package", "version", "member", "sha256", "archive_sha256", "licence")),
        "~domain@upstream.health_tweets",
        "domain@upstream.english_news=text",
        f"upstream.english_news.path={ROOT / 'README.md'}",
        "methods.full.optim.lr=3e-3",
        "methods.linear_probe.optim.lr=1e-1",
        "~methods.lora",
        "training.duration.steps=24",
        "training.batch_size=8",
        "training.length=16",
        "training.measure_every=8",
        "training.save_every=8",
        "texts.upstream=16",
        "texts.batch_size=8",
        "wandb.mode=disabled",
    ]


def test_a_task_is_learnt_from_the_shell_and_a_probe_forgets_nothing(
    settings: list[str], quick: dict[str, str], tmp_path: Path
):
    output = finish(settings, tmp_path, quick, "classification")
    (folder,) = (tmp_path / "runs" / "classification").iterdir()
    assert "Classification of bbc_news" in output
    summary = json.loads((folder / "summary.json").read_text())
    full, bitfit, probe = (summary["methods"][name] for name in ("full", "bitfit", "linear_probe"))
    assert full["final"]["bbc_news"]["accuracy"]["mean"] > max(0.9, summary["base"]["accuracy"])
    assert probe["trainable_parameters"] == 2 * (16 + 1) < bitfit["trainable_parameters"] < full["trainable_parameters"]
    changed, kept = (row["final"]["english_news"] for row in (full, probe))
    assert changed["similarity_error"]["mean"] > 0.01
    assert kept["similarity_error"]["mean"] < 1e-3
    assert kept["embedding_cosine"]["mean"] > 1 - 1e-5
    assert {result["target_loss"] for result in results(folder).values()} == {
        row["final"]["bbc_news"]["loss"]["mean"] for row in summary["methods"].values()
    }
    passport = json.loads((folder / "passport.json").read_text())
    assert passport["corpora"]["bbc_news"]["classes"] == ["cats", "dogs"]
