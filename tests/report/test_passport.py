import json
import subprocess

import pytest

from adaptlab.report.passport import code_version, passport

FACTS = {
    "seeds": [0, 1],
    "base": {"name": "smollm2", "sha256": "b1"},
    "corpora": {"news": "n1", "german": "g1"},
    "config_hash": "c1",
    "deltas": {"lora/seed=1": "d1", "full/seed=0": "d0"},
    "started": "2026-01-02T03:04:05+00:00",
    "finished": "2026-01-02T04:04:05+00:00",
}


def test_a_passport_is_json_with_a_fixed_order():
    first, second = passport(**FACTS), passport(**FACTS | {"corpora": {"german": "g1", "news": "n1"}})
    assert json.dumps(first) == json.dumps(second)
    assert json.loads(json.dumps(first)) == first
    assert list(first["deltas"]) == ["full/seed=0", "lora/seed=1"]
    assert first["times"]["resumed"] == []


def test_it_names_what_numbers_depend_on(monkeypatch):
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=8")
    monkeypatch.setenv("JAX_SOME_TOKEN", "secret")
    got = passport(**FACTS)
    assert got["environment"]["XLA_FLAGS"] == "--xla_force_host_platform_device_count=8"
    assert "secret" not in json.dumps(got)
    assert {"jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "tokenizers"} <= set(got["packages"])
    assert got["device"]["count"] >= 1
    assert got["jax"]["jax_enable_x64"] in (True, False)
    assert got["cpu"]["model"]


def test_base_weights_without_a_hash_are_refused():
    with pytest.raises(ValueError, match=r"needs the base weights' 'sha256'; base has \['name'\]"):
        passport(**FACTS | {"base": {"name": "smollm2"}})


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments):
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "a.py").write_text("1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    return tmp_path


def test_a_clean_checkout_is_its_commit(checkout):
    got = code_version(checkout / "code")
    assert len(got["commit"]) == 40
    assert got["dirty"] is False
    assert got["diff_sha256"] is None


def test_changes_and_new_files_each_change_the_hash(checkout):
    seen = [code_version(checkout / "code")["diff_sha256"]]
    for name, text in (("code/a.py", "2\n"), ("code/b.py", "3\n"), ("code/b.py", "4\n"), ("c.py", "5\n")):
        (checkout / name).write_text(text)
        got = code_version(checkout / "code")
        assert got["dirty"] is True
        seen.append(got["diff_sha256"])
    assert len(set(seen)) == len(seen)


def test_code_that_a_surrounding_checkout_does_not_track_has_no_commit(checkout):
    (checkout / "venv").mkdir()
    (checkout / "venv" / "a.py").write_text("1\n")
    assert code_version(checkout / "venv")["commit"] is None
