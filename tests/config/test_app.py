import sys

import pytest

from adaptlab import config
from adaptlab.report import judge
from experiments import low_rank, search
from scripts import launch
from tests.report.planted import TARGET, UPSTREAM, Arm, plant

MESSAGE = r"claims=null: 'claims' is a group of configs, which cannot be null. Choose from \[.*'low_rank'.*'~claims'"


def test_a_group_that_is_null_is_an_error_that_names_its_choices_and_how_to_leave_it_out():
    with pytest.raises(config.ConfigError, match=MESSAGE):
        config.compose("low_rank", ["claims=null"])
    with pytest.raises(config.ConfigError, match=r"domain@target=null: .*'german_speeches'.*'~domain@target'"):
        config.compose("low_rank", ["domain@target=null"])
    assert config.compose("low_rank", ["training.max_tokens=null"])["training"]["max_tokens"] is None  # a value may be


def test_a_value_without_a_default_is_asked_for_by_its_whole_key():
    given = launch.overrides(["target=jobset", "name=x", "command=experiments.forgetting"])
    with pytest.raises(config.ConfigError, match=r"target\.image has no value, .*: give target\.image=…"):
        config.compose("launch", given)


def test_a_command_says_so_without_a_traceback(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["low_rank", "claims=null", "--cfg", "job"])
    with pytest.raises(SystemExit, match=MESSAGE):
        low_rank.main()


def test_what_the_name_of_a_folder_needs_is_an_error_without_a_traceback_too(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["low_rank", "hosts.processes=2"])
    with pytest.raises(SystemExit, match=r"hosts\.process=None, hosts\.coordinator=None: give all three"):
        low_rank.main()


def test_two_studies_in_one_process_each_have_their_own_schema(monkeypatch: pytest.MonkeyPatch):
    for name, study in ("low_rank", low_rank), ("search", search), ("low_rank", low_rank):
        monkeypatch.setattr(sys, "argv", [name, "hosts.processes=2"])
        with pytest.raises(SystemExit, match="give all three"):
            study.main()


def test_a_study_without_claims_judges_none():
    study = low_rank.Study(**config.validate(config.compose("low_rank", ["~claims"]), schema=low_rank.Study))
    curves, runs = plant({"full": Arm()})
    assert judge(config.instantiate(study.claims), curves, runs, TARGET, UPSTREAM) == {}


@pytest.mark.parametrize(
    ("overrides", "hint"),
    [
        (["optim.lrr=1"], "'optim.lrr' is not a key of 'low_rank'. Did you mean 'optim.lr'?"),
        (
            ["hydra/launcher=vmap", "hydra.launcher.slotz=2"],
            "'hydra.launcher.slotz' is not a key of 'low_rank'. Did you mean 'hydra.launcher.slots'?",
        ),
        (
            ["schedule=cosinee"],
            "'cosinee' is no config of the group 'schedule'. Did you mean 'cosine'?",
        ),
        (["hydra/launcher=vmapp"], "'vmapp' is no config of the group 'hydra/launcher'. Did you mean 'vmap'?"),
        (["-m", "base=small,smal"], "'smal' is no config of the group 'base'. Did you mean 'small'?"),
        (["hydra.swep.dir=x"], "'hydra.swep.dir' is not a key of 'low_rank'. Did you mean 'hydra.sweep.dir'?"),
    ],
)
def test_an_override_that_hydra_rejects_comes_with_the_key_that_was_probably_meant(
    overrides: list[str], hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["low_rank", *overrides])
    with pytest.raises(SystemExit):
        low_rank.main()
    assert hint in capsys.readouterr().err
