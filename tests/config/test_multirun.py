"""Composing the jobs of a multirun once, from files that are read once: the same configs as Hydra's own."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.plugins.config_source import ConfigSource
from hydra.types import RunMode
from omegaconf import OmegaConf

from adaptlab.config.multirun import composing_once

JOBS = [["lr=0.1", "data=text"], ["lr=0.2", "data=code"], ["lr=0.1", "data=code"]]


@pytest.fixture
def loader(tmp_path: Path) -> Any:
    (tmp_path / "data").mkdir()
    (tmp_path / "main.yaml").write_text("defaults: [data: text, _self_]\nlr: 1.0\n")
    (tmp_path / "data" / "text.yaml").write_text("# @package _global_.data\nlength: 8\nmix: {a: 1}\n")
    (tmp_path / "data" / "code.yaml").write_text("length: 16\nmix: {b: '${lr}'}\n")
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(tmp_path), version_base="1.3"):
        yield GlobalHydra.instance().config_loader()


def master(loader: Any, *overrides: str) -> Any:
    return loader.load_configuration("main", list(overrides), RunMode.MULTIRUN)


def read(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count what is read from now on."""
    seen: Counter[str] = Counter()
    kinds = [kind for kind in ConfigSource.__subclasses__() if kind.__name__ == "FileConfigSource"]
    for kind in kinds:
        load = kind.load_config

        def counted(self: Any, config_path: str, load: Any = load) -> Any:
            seen[config_path] += 1
            return load(self, config_path)

        monkeypatch.setattr(kind, "load_config", counted)
    return seen


def test_jobs_are_as_hydra_composes_them_and_files_are_read_once(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = master(loader)
    expected = [OmegaConf.to_yaml(loader.load_sweep_config(whole, job)) for job in JOBS]
    composed, seen = composing_once(loader), read(monkeypatch)
    for job in JOBS:
        loader.load_sweep_config(whole, job)  # as a sweeper checks them
    once = dict(seen)
    assert [OmegaConf.to_yaml(composed(whole, job)) for job in JOBS] == expected
    assert dict(seen) == once
    assert {path: n for path, n in once.items() if n > 1} == {}
    assert {"main", "data/text", "data/code"} <= set(once)


def test_equal_lists_of_files_are_merged_once(loader: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, merged = master(loader), []
    merge = type(loader)._compose_config_from_defaults_list

    def counted(self: Any, defaults: Any, repo: Any) -> Any:
        merged.append([default.config_path for default in defaults])
        return merge(self, defaults, repo)

    monkeypatch.setattr(type(loader), merge.__name__, counted)
    composed = composing_once(loader)
    assert [composed(whole, job).lr for job in [*JOBS, ["lr=0.3", "data=text"]]] == [0.1, 0.2, 0.1, 0.3]
    assert ["text" in str(files) for files in merged] == [True, False]


def test_a_job_is_the_callers_to_change(loader: Any) -> None:
    whole, composed = master(loader), composing_once(loader)
    first = composed(whole, JOBS[1])
    first.data.mix.b = 7
    assert composed(whole, JOBS[1]).data.mix.b == 0.2
    loader.load_sweep_config(whole, JOBS[1])
    composed(whole, JOBS[1]).data.mix.b = 7
    assert composed(whole, JOBS[1]).data.mix.b == 0.2


def test_other_sources_are_read_anew(loader: Any, tmp_path: Path) -> None:
    """`hydra.searchpath` may bring another file of the same name first to one job, and not to the next."""
    other = tmp_path / "elsewhere" / "data"
    other.mkdir(parents=True)
    (other / "more.yaml").write_text("length: 32\nmix: {}\n")
    whole, composed = master(loader), composing_once(loader)
    assert composed(whole, ["data=code"]).data.length == 16
    searching = master(loader, f"hydra.searchpath=['{other.parent}']")
    assert composed(searching, ["data=more"]).data.length == 32
    with pytest.raises(Exception, match="more"):
        composed(whole, ["data=more"])
