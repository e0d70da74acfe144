"""The study of low-rank updates, whole: a real process on a tiny base."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from adaptlab import config
from adaptlab.adapt import load_delta
from adaptlab.report import load_curves
from adaptlab.report.curves import metrics, series
from adaptlab.study import fewest_runs, final_updates, open_lab
from experiments.low_rank import Study
from tests.study.conftest import finish, results

MATRICES = "layers/attention/(query|out)/kernel"  # decompositions take long to compile
SMALL = [  # long enough that every method gains something, whatever the text of this repository is by now
    *("~arms.pissa", "~arms.attention", "~arms.rslora", "~arms.subspace", f"+arms.lora.adapt.select='{MATRICES}'"),
    *("ranks=[1,4]", "multiples=[1]", "seeds=[0]", "replication.how=alone"),
    *("training.duration.steps=18", "training.measure_every=6"),
    *("measure.final.ranks=[0,1,4,32]", "measure.final.gradient_batches=1"),
    *(f"measure.updates.select='{MATRICES}'", f"measure.final.select='{MATRICES}'"),
]


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, overrides: list[str], quick: dict[str, str]) -> Path:
    cwd = tmp_path_factory.mktemp("low_rank")
    finish([*overrides, *SMALL], cwd, quick, "low_rank")
    (report,) = cwd.glob("runs/low_rank/*/report.html")
    return report.parent


def test_ranks_are_runs_of_one_program(study: Path):
    runs = json.loads((study / "runs.json").read_text())
    assert {run["method"] for run in runs.values()} == {"full", "lora_r1", "lora_r4"}
    assert len(json.loads((study / "programs.json").read_text())) == 2
    trained = {run["method"]: run["trainable_parameters"] for run in runs.values()}
    assert trained["lora_r4"] == 4 * trained["lora_r1"]


def test_the_measured_updates_are_those_of_the_saved_deltas(study: Path):
    updates = load_curves(study / "updates.parquet")
    for rank in (1, 4):
        run = f"lora_r{rank}/lr_0.01/seed_0"
        delta = load_delta(study / "runs" / run / "delta.safetensors").delta["layers"]["attention"]["query"]["kernel"]
        for layer in range(2):
            product = delta["a"][layer][:, :rank].astype(np.float64) @ delta["b"][layer][:rank] * 16.0 / rank
            s = np.linalg.svd(product, compute_uv=False)
            name = f"layers.attention.query/{layer}"
            assert series(updates, run, f"update/sigma_1/{name}").values_N[-1] == pytest.approx(s[0], rel=1e-4)
            ranks = series(updates, run, f"update/stable_rank/{name}")
            assert ranks.values_N[-1] == pytest.approx((s**2).sum() / s[0] ** 2, rel=1e-4)
            assert ranks.steps_N.tolist() == [6, 12, 18]  # at step 0 there is no update yet
            norms = series(updates, run, f"update/relative_norm/{name}")
            assert norms.steps_N.tolist() == [0, 6, 12, 18]
            assert norms.values_N[0] == 0


def test_an_update_that_is_not_cut_has_the_loss_of_the_run(study: Path):
    curves, updates = (load_curves(study / f"{name}.parquet") for name in ("curves", "updates"))
    domains = json.loads((study / "summary.json").read_text())
    for run in results(study):
        cut = [name for name in metrics(updates, run) if name.startswith("truncated/")]
        for domain in (domains["target"], *domains["upstream"]):
            whole = max(int(name.split("/")[1]) for name in cut)
            left = series(updates, run, f"truncated/{whole}/{domain}/loss").values_N[-1]
            assert left == pytest.approx(series(curves, run, f"held_out/{domain}/loss").values_N[-1], rel=1e-5), run
    none = series(updates, "lora_r4/lr_0.01/seed_0", f"truncated/0/{domains['target']}/loss").values_N[-1]
    assert none == pytest.approx(domains["base"][domains["target"]]["loss"], rel=1e-6)


def test_the_report_has_the_figures_and_the_verdicts(study: Path):
    page = (study / "report.html").read_text()
    for name in ("frontiers", "gain_by_rank", "update_spectra", "update_ranks", "truncation", "norm_and_angle"):
        assert f'<figure id="{name}">' in page
        assert (study / "figures" / f"{name}.png").stat().st_size > 0
    verdicts = json.loads((study / "verdicts.json").read_text())["claims"]
    assert verdicts["lora_forgets_less"]["verdict"] == "inconclusive"  # one seed
    intruders = json.loads((study / "runs.json").read_text())["full/lr_0.001/seed_0"]["update"]["intruders_0.5"]
    assert 0 <= intruders <= 8


def test_updates_measured_by_parts_of_a_mesh_are_those_of_one_device(study: Path, tmp_path: Path):
    node = OmegaConf.to_container(OmegaConf.load(study / "config.yaml"))
    node["mesh"] |= {"replica": 4, "data": 2}
    spread = Study(**node)
    for kept in study.glob("runs/*/*/*/delta.safetensors"):
        home = tmp_path / kept.parent.relative_to(study)
        home.mkdir(parents=True)
        shutil.copy(kept, home)
    wanted = config.instantiate(spread.measure["final"])
    rates = {member.method: member.lr for member in spread.members()}
    found = final_updates(open_lab(spread), spread.members(), tmp_path, wanted, rates)
    for name, metrics_of in found.items():
        alone = json.loads((study / "runs" / name / "updates.json").read_text())
        assert metrics_of.keys() == alone.keys()
        for metric, value in alone.items():
            np.testing.assert_allclose(metrics_of[metric], value, rtol=2e-4, atol=1e-6, err_msg=f"{name} {metric}")


def test_runs_are_spread_over_as_many_devices_as_the_smallest_program_has_runs(study: Path):
    node = OmegaConf.to_container(OmegaConf.load(study / "config.yaml"))
    assert fewest_runs(Study(**node)) == 1  # they are to run alone
    node["replication"]["how"] = "auto"
    assert fewest_runs(Study(**node)) == 1  # full fine-tuning has one run, LoRA has two
    assert fewest_runs(Study(**node | {"seeds": [0, 1, 2]})) == 3
    del node["arms"]["full"]
    assert fewest_runs(Study(**node)) == 2


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("ranks=[0,4]", r"ranks=\[0, 4\]: give at least one size, and none below 1"),
        ("arms.rslora.sizes=[]", r"arms.rslora.sizes=\[\]: give at least one"),
        ("optim.lr=-0.001", r"optim.lr=-0.001: adaptlab.optim.adamw expects a number in \[0, inf\)"),
        ("multiples=[1,-1]", "optim.lr=-0.001 is not a learning rate"),
    ],
)
def test_what_would_train_nothing_or_uphill_is_refused_before_anything_loads(override: str, message: str):
    node = config.compose("low_rank", [override])
    with pytest.raises(config.ConfigError, match=message):
        Study(**{key: value for key, value in node.items() if key in Study.__dataclass_fields__}).members()
