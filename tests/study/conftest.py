"""A study small enough for tests: a tiny Llama with its own tokenizer, and text from the repository itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from adaptlab.models import LlamaShape, llama, save_hf

ROOT = Path(__file__).parents[2]
SHAPE = LlamaShape(vocab_size=320, width=32, depth=2, heads=4, kv_heads=2, head_width=8, ffn_width=48)


def tiny_base(folder: Path) -> Path:
    """Write a random Llama and a byte-level tokenizer trained on this repository's Python."""
    from tokenizers import ByteLevelBPETokenizer

    save_hf(folder, SHAPE, jax.device_get(llama(SHAPE).init(jax.random.key(0))), context=256)
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train(
        [str(p) for p in (ROOT / "adaptlab").glob("*.py")], vocab_size=SHAPE.vocab_size, show_progress=False
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="session")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides that make `experiments.forgetting` a matter of seconds."""
    base = tiny_base(tmp_path_factory.mktemp("base"))
    text = tmp_path_factory.mktemp("text")
    for name in ("adapt", "train"):
        sources = sorted((ROOT / "adaptlab" / name).glob("*.py"))
        (text / f"{name}.txt").write_text("\n\n".join(p.read_text() for p in sources))
    return [
        "base=local",
        f"base.weights.path={base}",
        "domain@target=text",
        f"target.path={text / 'adapt.txt'}",
        "~domain@upstream.english_speeches",
        "~domain@upstream.python_source",
        "domain@upstream.english_news=text",
        f"upstream.english_news.path={text / 'train.txt'}",
        "training.duration.steps=12",
        "training.batch_size=4",
        "training.length=32",
        "training.measure_every=3",
        "training.save_every=2",
        "held_out.tokens=512",
        "wandb.mode=disabled",
    ]


@pytest.fixture(scope="session")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One device, a cache of compiled programs that all test processes share, and one of measured choices."""
    home = tmp_path_factory.getbasetemp()
    home = home.parent if "PYTEST_XDIST_WORKER" in os.environ else home
    env = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    env["JAX_COMPILATION_CACHE_DIR"] = str(home / "xla")
    env["ADAPTLAB_CACHE"] = str(tmp_path_factory.mktemp("cache"))
    return env | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="session")
def quick(environment: dict[str, str]) -> dict[str, str]:
    """The same, compiled as quickly as in tests/conftest.py: for studies whose claims are no matter of bits."""
    return environment | {
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
        "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    }


def start(overrides: list[str], cwd: Path, env: dict[str, str], study: str = "forgetting") -> subprocess.Popen[str]:
    """Start a study as a user would."""
    return subprocess.Popen(
        [sys.executable, "-m", f"experiments.{study}", *overrides],
        cwd=cwd,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(overrides: list[str], cwd: Path, env: dict[str, str], study: str = "forgetting") -> str:
    """Run a study to its end and return what it printed."""
    process = start(overrides, cwd, env, study)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def results(folder: Path) -> dict[str, dict]:
    """The results of the members of a study, by name."""
    paths = sorted((folder / "runs").rglob("result.json"))
    return {str(p.parent.relative_to(folder / "runs")): json.loads(p.read_text()) for p in paths}
