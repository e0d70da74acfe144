from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adaptlab import tree
from adaptlab.adapt import load_delta, save_delta

DELTA = {
    "layers": {"q": {"kernel": {"a": np.arange(12.0, dtype=np.float32).reshape(3, 4).T}}},
    "b": jnp.ones(3, jnp.int32),
}
ADAPT = {"_target_": "adaptlab.adapt.lora", "rank": 2}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save_delta(tmp_path / "deep" / "delta.safetensors", DELTA, adapt=ADAPT, base="abc")
    return tmp_path / "deep" / "delta.safetensors"


def test_what_is_loaded_is_what_was_saved_and_says_what_it_belongs_to(path: Path):
    saved = load_delta(path, base="abc")
    assert tree.digest(saved.delta) == tree.digest(DELTA) == saved.digest
    assert (saved.adapt, saved.base) == (ADAPT, "abc")


def test_saving_leaves_one_file_and_replaces_the_last(path: Path):
    save_delta(path, {"x": np.ones(1, np.float32)}, adapt=ADAPT, base="abc")
    assert [p.name for p in path.parent.iterdir()] == ["delta.safetensors"]
    assert tree.count(load_delta(path).delta) == 1


def test_a_delta_of_another_base_is_an_error_that_names_both(path: Path):
    with pytest.raises(ValueError, match="was trained on the base with SHA-256 abc, not on xyz"):
        load_delta(path, base="xyz")


def damage(path: Path, kind: str) -> Any:
    data = bytearray(path.read_bytes())
    if kind == "flip":
        data[-3] ^= 1
    path.write_bytes(data[: len(data) // 2] if kind == "cut" else data)
    if kind == "strange":
        save_file(load_file(path), path)
    if kind == "gone":
        path.unlink()


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("flip", "is damaged: its arrays do not have the digest"),
        ("cut", "is not a whole safetensors file"),
        ("strange", "is a safetensors file, but not a delta"),
        ("gone", "There is no delta at"),
    ],
)
def test_a_file_that_is_not_a_whole_delta_is_an_error(kind: str, message: str, path: Path):
    damage(path, kind)
    with pytest.raises(ValueError, match=message):
        load_delta(path)
