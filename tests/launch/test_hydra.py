"""Hydra's launcher for Slurm, as conf/hydra/launcher/slurm_requeue.yaml sets it: what sbatch would read.

Skipped where the plugin is not installed: `pip install "adaptlab[sweeps]"`.
"""

from pathlib import Path

import pytest
import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from adaptlab import config


def test_the_preset_sets_only_what_a_user_can_read():
    preset = yaml.safe_load((config.conf_dir() / "hydra" / "launcher" / "slurm_requeue.yaml").read_text())
    assert preset["defaults"] == ["submitit_slurm"]
    assert preset["additional_parameters"] == {"requeue": True}


def test_a_job_of_a_sweep_is_signalled_in_time_and_may_be_queued_again(tmp_path: Path):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    slurm = pytest.importorskip("submitit.slurm.slurm")
    asked = ["hydra/launcher=slurm_requeue", "hydra.launcher.partition=gpu"]
    with initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        launcher = OmegaConf.to_container(compose("lr_schedule", asked, return_hydra_config=True).hydra.launcher)
    assert isinstance(launcher, dict)
    script = slurm._make_sbatch_string(
        command="true",
        folder=tmp_path,
        time=launcher["timeout_min"],
        partition=launcher["partition"],
        gpus_per_node=launcher["gpus_per_node"],
        signal_delay_s=launcher["signal_delay_s"],
        additional_parameters=launcher["additional_parameters"],
    )
    for line in ("--signal=USR2@300", "--requeue", "--time=1440", "--partition=gpu", "--open-mode=append"):
        assert f"#SBATCH {line}\n" in script
    assert launcher["max_num_timeout"] == 50
