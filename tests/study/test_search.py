"""A search over adaptations: what it draws, what it selects by, and one to its end from the shell."""

import json
import math
from pathlib import Path
from typing import Any

import jax
import pytest

from adaptlab import config, tree
from adaptlab.adapt import count_trained, prepared
from adaptlab.models import LlamaShape, llama
from adaptlab.report import load_curves, read_journal
from adaptlab.study import members
from adaptlab.study.members import method_program
from adaptlab.study.reward import reward, reward_value
from adaptlab.study.search import Configuration, Space, configured, describe, sample, search_value
from adaptlab.train import device_numbers
from tests.study.conftest import finish

SPACE = Space(
    layers=2,
    targets={"none": None, "attention": "layers/attention/.*/kernel", "all": "layers/.*/kernel"},
    ranks=[0, 1, 4],
    serial=[0, 3],
    serial_at=["attention", "feed_forward", "both"],
    parallel=[0, 5],
    prefix=[0, 2],
)
OPTIM = config.validate({"_target_": "adaptlab.optim.adamw", "lr": 1.0})
MODEL = llama(LlamaShape(vocab_size=32, width=16, depth=2, heads=4, kv_heads=2, head_width=6, ffn_width=20))
ONE = Configuration("attention", [4, 0], 3, "attention", 5, 2, 8.0, 1e-2)


def changed(**changes: Any) -> Configuration:
    return Configuration(**(vars(ONE) | changes))


def test_the_same_seed_draws_the_same_configurations_and_fewer_are_the_first_of_more():
    many = sample(SPACE, 20, 0)
    assert sample(SPACE, 20, 0) == many
    assert sample(SPACE, 5, 0) == many[:5]
    assert sample(SPACE, 20, 1) != many


def test_drawn_configurations_differ_adapt_something_and_fit_the_slots():
    drawn = sample(SPACE, 60, 3)
    assert len({json.dumps(vars(one)) for one in drawn}) == 60
    assert len({describe(one) + str(one.lr) for one in drawn}) == 60  # what is switched off makes no difference
    base = jax.eval_shape(MODEL.init, jax.random.key(0))
    for one in drawn:
        adapt = configured(SPACE, one, OPTIM)["adapt"]
        adaptation = config.instantiate(adapt, fresh=MODEL.init, slots=MODEL.slots())
        delta = jax.eval_shape(adaptation.init, jax.random.key(0), base)
        assert count_trained(adaptation, base, delta) > 0
        bind = lambda base, delta, a=adaptation: jax.tree.leaves(a.bind(prepared(a, base), delta))  # noqa: E731
        jax.eval_shape(bind, base, delta)  # raises where two adapters meet


def test_a_space_of_too_few_configurations_is_refused():
    small = SPACE._replace(targets={"none": None}, serial=[0], prefix=[0], lr=[1e-3])
    assert [describe(one) for one in sample(small, 1, 0)] == ["parallel 5"]
    with pytest.raises(config.ConfigError, match="configurations=2: the space seems to hold only 1"):
        sample(small, 2, 0)
    with pytest.raises(config.ConfigError, match=r"space\.lr is empty"):
        sample(small._replace(lr=[]), 1, 0)
    with pytest.raises(config.ConfigError, match="configurations=0"):
        sample(small, 0, 0)


@pytest.mark.parametrize(
    ("one", "said"),
    [
        (changed(serial_at="both"), "two adapters in one slot"),
        (changed(ranks=[0, 0], serial=0, parallel=0, prefix=0), "adapts nothing"),
        (changed(targets="head"), "targets='head' of ranks"),
        (changed(ranks=[5, 0]), "ranks up to 4"),
    ],
    ids=["slots", "nothing", "targets", "ranks"],
)
def test_what_cannot_be_is_refused(one: Configuration, said: str):
    with pytest.raises(config.ConfigError, match=said):
        configured(SPACE, one, OPTIM)


def test_ranks_alpha_and_learning_rates_share_a_program_and_methods_do_not():
    def program(one: Configuration) -> str:
        return members({"m": configured(SPACE, one, OPTIM)}, [0])[0].program

    same = [changed(ranks=[1, 4]), changed(alpha=2.0), changed(lr=1e-4)]
    others = [changed(targets="all"), changed(serial=0), changed(prefix=4), changed(ranks=[0, 0])]
    assert {program(one) for one in same} == {program(ONE)}
    assert program(ONE) not in {program(one) for one in others}


def test_a_program_of_layer_ranks_hears_each_rank():
    (member,) = members({"m": configured(SPACE, changed(prefix=0, serial=0, parallel=0), OPTIM)}, [0])
    program = method_program(member, MODEL, 10, target="text")
    base = MODEL.init(jax.random.key(0))
    delta = jax.tree.map(lambda x: x + 0.1, program.init(*device_numbers(member.numbers, 0), base).delta)
    bound = {}
    for name, change in {"as it is": {}, "first": {0: 1.0}, "second": {1: 1.0}}.items():
        names = {f"adapt.stages.lora.layer_ranks[{i}]": rank for i, rank in change.items()}
        assert names.keys() <= member.numbers.keys()
        bound[name] = tree.digest(jax.jit(program.bind)(device_numbers(member.numbers | names, 0)[0], base, delta))
    assert len(set(bound.values())) == 3


def test_the_rewards_are_gain_and_gain_per_parameter():
    assert reward("gain", 0.5, 100) == 0.5
    assert reward("gain_per_parameter", 0.5, 100) == 0.005
    assert reward("gain_per_parameter", 0.0, 0) == 0.0
    runs = {n: {"target_loss": loss, "trainable_parameters": 10} for n, loss in (("a", 2.0), ("b", 3.0))}
    assert reward_value(runs, "gain", 4.0) == -1.5
    assert reward_value(runs, "gain_per_parameter", 4.0) == pytest.approx(-0.15)
    assert reward_value(runs | {"c": {"target_loss": None, "trainable_parameters": 1}}, "gain", 4.0) == math.inf


TINY = [
    "space.layers=2",
    "space.ranks=[0,2]",
    "space.serial=[0]",
    "space.parallel=[0]",
    "space.prefix=[0]",
    "configurations=5",
    "finalists=2",
    "final_seeds=[1,2]",
    "halving.first=0.25",
]


@pytest.fixture(scope="module")
def here(overrides: list[str]) -> list[str]:
    return [o for o in overrides if not o.startswith("~domain@upstream")]


def test_a_search_selects_by_reward_and_reports_what_fresh_seeds_and_text_say(
    here: list[str], quick: dict[str, str], tmp_path: Path
):
    output = finish([*TINY, *here], tmp_path, quick, "search")
    (folder,) = (tmp_path / "runs" / "search").iterdir()
    assert "step 3: 2 of 5 runs go on" in output
    assert "step 9: 1 of 2 runs go on" in output
    summary = json.loads((folder / "summary.json").read_text())
    search = summary["search"]
    rows = search["configurations"]
    assert len(rows) == 5

    # The first rung: the best third by gain per parameter, over the base and not over step 0, went on.
    worth = {}
    for name, row in rows.items():
        (journal,) = folder.glob(f"runs/{name}/*/seed_0/journal.jsonl")
        loss = next(r.metrics["held_out/adapt/loss"] for r in read_journal(journal) if r.step == 3)
        worth[name] = (search["base"]["selection"] - loss) / row["parameters"]
    best = sorted(worth, key=lambda name: -worth[name])[:2]
    assert {name for name, row in rows.items() if row["steps"] > 3} == set(best)

    # The finalists: other seeds, other text, one of them the survivor.
    finals = {name: row for name, row in rows.items() if row["fresh"]}
    assert 1 <= len(finals) <= 2
    assert {name for name, row in rows.items() if row["ended"] == "complete"} <= finals.keys()
    assert all(row["fresh"]["seeds"] == [1, 2] for row in finals.values())
    assert search["base"]["fresh"] != search["base"]["selection"]
    assert summary["base"]["adapt"]["loss"] == pytest.approx(search["base"]["fresh"], rel=1e-5)
    runs = json.loads((folder / "runs.json").read_text())
    assert len(runs) == 2 * len(finals)
    assert all(run["seed"] in (1, 2) for run in runs.values())
    for name, row in finals.items():
        losses = [run["target_loss"] for run in runs.values() if run["method"] == name]
        assert row["fresh"]["gain"]["mean"] == pytest.approx(search["base"]["fresh"] - sum(losses) / 2)
    assert set(search["front"]) <= finals.keys()
    assert json.loads((folder / "done.json").read_text())["value"] == pytest.approx(search_value(search))
    passport = json.loads((folder / "passport.json").read_text())
    assert passport["corpora"]["adapt"]["fresh"]["tokens"] > 0
    assert len(load_curves(folder / "search.parquet")) > 0
    page = (folder / "report.html").read_text()
    assert all(row["said"] in page for row in rows.values())
    assert (folder / "figures" / "front.svg").exists()


@pytest.mark.slow
def test_one_configuration_is_a_job_whose_value_is_its_reward(here: list[str], quick: dict[str, str], tmp_path: Path):
    jobs = ["-m", "seed=0", "configuration.ranks=[2,2]", "configuration.ranks.0=0,2", "hydra/launcher=vmap"]
    output = finish([*jobs, *TINY, *here], tmp_path, quick, "search")
    assert "2 runs are 1 program" in output
    (sweep,) = (tmp_path / "runs" / "search").glob("sweep_*")
    values, counts = {}, {}
    for job in ("0", "1"):
        values[job] = json.loads((sweep / job / "done.json").read_text())["value"]
        ((_, run),) = json.loads((sweep / job / "runs.json").read_text()).items()
        counts[job] = run["trainable_parameters"]
        (path,) = (sweep / job).glob("runs/**/journal.jsonl")
        first, *_, last = (
            row.metrics["held_out/adapt/loss"] for row in read_journal(path) if "held_out/adapt/loss" in row.metrics
        )
        assert values[job] == pytest.approx(-(first - last) / counts[job], rel=1e-4)
    assert counts["1"] == 2 * counts["0"]  # one layer is off


@pytest.mark.slow
def test_optuna_searches_the_numbers_of_a_configuration(here: list[str], quick: dict[str, str], tmp_path: Path):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    jobs = ["-m", "seed=0", "configuration.ranks=[2,2]", "configuration.ranks.0=choice(0,2)"]
    jobs += ["configuration.lr=tag(log,interval(1e-4,1e-2))", "hydra/sweeper=optuna", "hydra.sweeper.n_trials=4"]
    finish([*jobs, *TINY, *here], tmp_path, quick, "search")
    (sweep,) = (tmp_path / "runs" / "search").glob("sweep_*")
    values = [json.loads(p.read_text())["value"] for p in sweep.glob("*/done.json")]
    assert len(values) == 4
    text = (sweep / "optimization_results.yaml").read_text()
    assert f"best_value: {min(values)}" in text
