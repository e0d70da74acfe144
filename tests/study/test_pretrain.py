"""A base that is trained here can be read by every study, is trained once, and brings its optimiser's state."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from adaptlab import config, optim, source, tree
from adaptlab.data import load_tokenizer
from adaptlab.models import pretrained
from adaptlab.optim.carry import carry
from adaptlab.report import read_journal
from adaptlab.shard import Placement, make_mesh
from adaptlab.source import SourceError, made
from adaptlab.study import open_moments
from experiments.pretrain import Study

ROOT = Path(__file__).parents[2]
STEPS = 6


@pytest.fixture(scope="module")
def environment(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A cache of its own."""
    return environment | {"ADAPTLAB_CACHE": str(tmp_path_factory.mktemp("cache"))}


@pytest.fixture(scope="module")
def overrides(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The overrides that make `experiments.pretrain` a matter of seconds."""
    text = tmp_path_factory.mktemp("text")
    for name in ("adapt", "train"):
        files = sorted((ROOT / "adaptlab" / name).glob("*.py"))
        (text / f"{name}.txt").write_text("\n\n".join(p.read_text() for p in files))
    shape = {"vocab_size": 300, "width": 32, "depth": 2, "heads": 4, "kv_heads": 2, "head_width": 8, "ffn_width": 48}
    return [
        "~domain@domains.python_source",
        *(f"domain@domains.{name}=text" for name in ("english_news", "english_speeches")),
        f"domains.english_news.path={text / 'adapt.txt'}",
        f"domains.english_speeches.path={text / 'train.txt'}",
        *(f"model.{name}={size}" for name, size in shape.items()),
        f"training.duration.steps={STEPS}",
        "training.batch_size=4",
        "training.length=32",
        "training.measure_every=2",
        "training.save_every=2",
        "held_out.tokens=256",
        "wandb.mode=disabled",
    ]


def run(overrides: list[str], cwd: Path, env: dict[str, str]) -> tuple[int, str]:
    command = [sys.executable, "-m", "experiments.pretrain", *overrides]
    done = subprocess.run(command, cwd=cwd, env=env, text=True, capture_output=True, timeout=600)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def base(overrides: list[str], environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    code, output = run(overrides, tmp_path_factory.mktemp("cwd"), environment)
    assert code == 0, output
    return Path(environment["ADAPTLAB_CACHE"]) / "bases" / "small"


def test_the_config_fits_its_schema():
    complete = config.validate(config.compose("pretrain"), schema=Study)
    assert config.validate(complete, schema=Study) == complete


def test_the_default_batch_is_shared_evenly_by_the_default_domains():
    node = config.compose("pretrain")
    assert node["training"]["batch_size"] % len(node["domains"]) == 0


def test_the_base_is_what_was_trained(base: Path):
    model = pretrained(source.local(base / "model"))
    params = model.load()
    result = json.loads((base / "runs" / "pretrain" / "result.json").read_text())
    assert tree.digest(params) == result["delta_digest"]
    assert model.context == 32
    tokenizer = load_tokenizer(source.local(base / "model"))
    logits = model.model.apply(jax.device_put(params), jax.numpy.asarray(tokenizer.encode(["def f(x):"])[0])[None])
    assert logits.shape[-1] == tokenizer.vocab_size == 300


def test_every_domain_is_measured_on_the_way_and_gets_better(base: Path):
    rows = read_journal(base / "runs" / "pretrain" / "journal.jsonl")
    for name in ("english_news", "english_speeches"):
        measured = {row.step: row.metrics[key] for row in rows if (key := f"held_out/{name}/loss") in row.metrics}
        losses = [measured[step] for step in (0, 2, STEPS)]
        assert losses[0] == pytest.approx(np.log(300), rel=0.02)  # random weights know nothing
        assert losses[-1] < losses[0] - 0.05


def test_the_passport_names_the_weights_and_the_text(base: Path):
    passport = json.loads((base / "passport.json").read_text())
    assert passport["base"]["sha256"] == pretrained(source.local(base / "model")).fingerprint
    assert set(passport["corpora"]) == {"english_news", "english_speeches"}


def test_run_again_it_says_that_the_base_is_finished_and_changes_nothing(
    base: Path, overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    def files() -> dict[Path, int]:
        kept = ("model", "optimizer.safetensors", "report.html", "runs")
        return {p: p.stat().st_mtime_ns for name in kept for p in [base / name, *(base / name).rglob("*")]}

    before = files()
    code, output = run(overrides, tmp_path, environment)
    assert code == 0
    assert f"{base} has finished before" in output
    assert files() == before


def test_another_config_does_not_overwrite_the_base(
    base: Path, overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    code, output = run([*overrides, "optim.lr=1e-3"], tmp_path, environment)
    assert code != 0
    assert "optim.lr: 0.004 -> 0.001" in output


def test_a_base_elsewhere_is_the_same_bit_by_bit_even_if_it_was_interrupted(
    base: Path, overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    there = [*overrides, "out=mine"]
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.pretrain", *there],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    saved = tmp_path / "mine" / "runs" / "pretrain" / "checkpoints" / "steps"
    while process.poll() is None and not (saved / "2").exists():
        pass
    process.kill()
    process.wait()
    code, output = run(there, tmp_path, environment)
    assert code == 0, output
    for name in ("model/model.safetensors", "model/tokenizer.json"):
        assert (tmp_path / "mine" / name).read_bytes() == (base / name).read_bytes()


def test_its_moments_fit_a_new_training_of_its_weights_and_lie_where_the_weights_lie(base: Path):
    model = pretrained(source.local(base / "model"))
    node = {"optimizer": {"_target_": "adaptlab.source.local", "path": str(base / "optimizer.safetensors")}}
    placement = Placement(make_mesh(data=4, tensor=2), model.model.axes())
    saved = open_moments(node, model.fingerprint, placement)
    params = model.load()
    state = carry(optim.adamw(1e-3, total_steps=5).init(params), saved)
    adam = next(x for x in state if hasattr(x, "nu"))
    assert int(adam.count) == STEPS
    assert all(np.any(np.asarray(x) > 0) for x in jax.tree.leaves(adam.nu))
    wanted = placement.shardings(placement.axes, saved["adam"]["mu"])
    placed = jax.tree.map(lambda x, where: x.sharding.is_equivalent_to(where, x.ndim), saved["adam"]["mu"], wanted)
    assert all(jax.tree.leaves(placed))


def test_moments_of_another_base_are_refused(base: Path):
    node = {"optimizer": {"_target_": "adaptlab.source.local", "path": str(base / "optimizer.safetensors")}}
    with pytest.raises(ValueError, match="choose that base"):
        open_moments(node, "0" * 64)


def test_a_base_without_an_optimisers_state_says_where_one_is_to_be_had():
    node: dict[str, Any] = config.compose("base/smollm2")["base"]
    with pytest.raises(config.ConfigError, match=r"python -m experiments\.pretrain"):
        open_moments(node)


def test_a_base_that_is_not_there_yet_names_the_command_that_makes_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(os.environ, "ADAPTLAB_CACHE", str(tmp_path))
    node = config.compose("base/small")["base"]
    with pytest.raises(SourceError, match=r"`python -m experiments\.pretrain` makes it \(up to thirteen minutes"):
        config.instantiate(node["model"])


@pytest.mark.parametrize("member", ["/etc/passwd", "../other"])
def test_what_is_made_lies_inside_the_cache(member: str):
    with pytest.raises(ValueError, match="no path inside the cache"):
        made(member, "python -m x", "a moment")
