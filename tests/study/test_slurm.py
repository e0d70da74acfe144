"""Slurm through submitit, with stand-ins for Slurm's programs: told to go, a job saves, is queued again, and goes on.

Skipped where the plugin is not installed: `pip install "adaptlab[sweeps]"`.
"""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from tests.study.conftest import finish, start

STUDY = "lr_schedule"
# A job is its script in the background; queued again, it is started again.
PROGRAMS = {
    "sbatch": 'cp "$1" "$SLURM/script"; (bash "$SLURM/script" >>"$SLURM/log" 2>&1 &); echo Submitted batch job 7',
    "srun": """while [ "${1#--}" != "$1" ]; do [ "$1" = --unbuffered ] || shift; shift; done
echo $$ >"$SLURM/pid"; echo start >>"$SLURM/starts"; exec "$@" """,
    "scontrol": 'echo "$*" >>"$SLURM/requeued"; (sleep 3; bash "$SLURM/script" >>"$SLURM/log" 2>&1) &',
    "sacct": "printf 'JobID|State|NodeList\\n7|RUNNING|node\\n'",
    "scancel": "",
}
JOB = {
    "JOB_ID": "7",
    "NTASKS": "1",
    "JOB_NUM_NODES": "1",
    "NODEID": "0",
    "PROCID": "0",
    "LOCALID": "0",
    "JOB_NODELIST": "n",
}


@pytest.mark.slow
def test_a_job_that_slurm_signals_saves_is_queued_again_and_ends_where_it_would_have(
    overrides: list[str], environment: dict[str, str], tmp_path: Path
):
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    slurm, long = (
        tmp_path / "slurm",
        ["training.duration.steps=400", "training.measure_every=50", "training.save_every=1000"],
    )
    (slurm / "bin").mkdir(parents=True)
    for name, text in PROGRAMS.items():
        (slurm / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (slurm / "bin" / name).chmod(0o755)
    cluster = {f"SLURM_{key}": value for key, value in JOB.items()}
    env = environment | cluster | {"SLURM": str(slurm), "PATH": f"{slurm / 'bin'}:{os.environ['PATH']}"}
    jobs = ["-m", "seed=0", "optim.lr=1e-3", "hydra/launcher=slurm_requeue", *overrides, *long]
    process = start(jobs, tmp_path, env, STUDY)
    home = f"runs/{STUDY}/sweep_*/0/runs/*/*/*"
    while process.poll() is None and not any(
        p.read_text().count("\n") > 60 for p in tmp_path.glob(f"{home}/journal.jsonl")
    ):
        time.sleep(0.05)
    os.kill(int((slurm / "pid").read_text()), signal.SIGUSR2)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said + (slurm / "log").read_text()
    assert (slurm / "requeued").read_text() == "requeue 7\n"
    assert (slurm / "starts").read_text() == "start\nstart\n"
    (result,) = (json.loads(path.read_text()) for path in tmp_path.glob(f"{home}/result.json"))
    assert 0 < result["resumed_at"] < 400  # no checkpoint was due: it saved because it was told
    (tmp_path / "alone").mkdir()
    finish(
        ["seed=0", "optim.lr=1e-3", *overrides, *long, "hydra.run.dir=study"], tmp_path / "alone", environment, STUDY
    )
    (alone,) = (json.loads(path.read_text()) for path in tmp_path.glob("alone/study/runs/*/*/*/result.json"))
    assert result["delta_digest"] == alone["delta_digest"]
