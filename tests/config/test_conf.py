"""Every yaml file fits the factories it names."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from adaptlab import config, leaf, tree
from adaptlab.adapt import materialize, prepared
from adaptlab.models import BertShape, LlamaShape, Model, bert_classifier, llama
from adaptlab.report import Claim
from experiments import (
    classification,
    forgetting,
    loss_landscape,
    low_rank,
    lr_schedule,
    numerics,
    pretrain,
    scaling,
    search,
)
from scripts.evaluate import Evaluation

CONF = config.conf_dir()
GROUPS = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.glob("*/*.yaml"))
PARTS = [name for name in GROUPS if not name.startswith("experiment/")]
PRESETS = [name for name in GROUPS if name.startswith("experiment/")]
# What a user must give, and what a test machine has: eight devices.
GIVEN = {
    "adapt/fusion": ["adapt.adapters=[some/delta.safetensors]"],
    "adapt/fisher_masked": ["adapt.mask=some/mask.safetensors"],
    "adapt/textual_inversion": ["adapt.ids=[1,2]"],
    "base/local": [f"base.weights.path={CONF}"],
    "base/hub": ["base.weights.repo=some/model"],
    "domain/text": ["domain.path=some/text.txt"],
    "launch/tpu_vm": ["launch.bucket=some-bucket"],
    "launch/queued_resource": ["launch.bucket=some-bucket"],
    "launch/jobset": ["launch.image=some/image", "launch.bucket=some-bucket"],
    "launch/xpk": ["launch.image=some/image", "launch.cluster=some-cluster", "launch.storage=some-storage"],
    "launch/skypilot": ["launch.bucket=gs://some-bucket"],
    "mesh/single": ["mesh.data=8"],
}


def node_of(name: str) -> Any:
    return config.compose(name, GIVEN.get(name, []))[name.split("/")[0]]


def calls(node: Any) -> list[dict[str, Any]]:
    """Every call in a config, the outer ones first."""
    below = node.values() if isinstance(node, dict) else node if isinstance(node, list) else []
    own = [node] if isinstance(node, dict) and "_target_" in node else []
    return own + [call for value in below for call in calls(value)]


def test_there_is_a_yaml_for_each_part_of_a_study():
    assert {name.split("/")[0] for name in GROUPS} == {
        "adapt",
        "base",
        "claims",
        "domain",
        "experiment",
        "form",
        "groups",
        "hosts",
        "launch",
        "law",
        "measure",
        "mesh",
        "method",
        "model",
        "optim",
        "schedule",
        "task",
    }


@pytest.mark.parametrize("name", PARTS)
def test_a_yaml_says_all_that_its_factories_need_and_nothing_else(name: str):
    node = node_of(name)
    assert config.validate(node)
    assert calls(node)


LLAMA = llama(LlamaShape(32, 16, 2, 4, 2, 4, 24))
MEMBERS = {
    "adapt": ["init", "bind", "axes"],
    "form": ["predict", "starts", "equation"],
    "groups": ["rate", "decay", "start"],
    "launch": ["render", "secrets_from_here"],
    "mesh": ["devices"],
    "model": ["init", "apply", "axes"],
    "optim": ["init", "update"],
    "schedule": [],
}


CLASSIFIER = bert_classifier(BertShape(32, width=16, depth=2, heads=4, ffn_width=24, context=8), classes=3)
READS_FILES = {"adapt/fusion", "adapt/fisher_masked"}  # tests.adapt builds them
CONVOLUTION = Model(  # no family that is read here has one
    init=lambda key: {"conv_1": {"kernel": jax.random.normal(key, (3, 3, 4, 8))}},
    apply=lambda params, x: x,
    axes=lambda: {"conv_1": {"kernel": (None, None, "embed", "ffn")}},
)
NOT_OF_A_LLAMA = {  # it has neither biases nor, with tied embeddings, a head
    "adapt/bitfit": CLASSIFIER,
    "adapt/linear_probe": CLASSIFIER,
    "adapt/lora_conv": CONVOLUTION,
}


@pytest.mark.parametrize("name", [n for n in PARTS if n.split("/")[0] in MEMBERS and n not in READS_FILES])
def test_a_yaml_builds_what_its_group_is(name: str):
    given = {"total_steps": 10, "fresh": LLAMA.init, "slots": LLAMA.slots()}
    built = config.instantiate(config.validate(node_of(name)), **given)
    assert all(hasattr(built, member) for member in MEMBERS[name.split("/")[0]])


@pytest.mark.parametrize("name", [n for n in PARTS if n.startswith("claims/")])
def test_every_claim_has_a_rule(name: str):
    claims = config.instantiate(config.validate(node_of(name)))
    assert all(isinstance(one, Claim) for one in claims.values())


@pytest.mark.parametrize("name", [n for n in PARTS if n.split("/")[0] in ("base", "domain", "task")])
def test_a_source_is_described_without_fetching_it(name: str):
    sources = [call for call in calls(node_of(name)) if call["_target_"].startswith("adaptlab.source.")]
    assert sources or name == "domain/text"
    for source in map(config.instantiate, sources):
        assert callable(source.fetch)


@pytest.mark.parametrize("adapt", [n for n in PARTS if n.startswith("adapt/") and n not in READS_FILES])
def test_an_adaptation_yaml_fits_a_model(adapt: str):
    model = NOT_OF_A_LLAMA.get(adapt, LLAMA)
    adaptation = config.instantiate(node_of(adapt), fresh=model.init, slots=model.slots())
    base = jax.eval_shape(model.init, jax.random.key(0))
    added: set[str] = set()

    def adapted(base: Any) -> Any:
        base = prepared(adaptation, base)
        params = adaptation.bind(base, adaptation.init(jax.random.key(0), base))
        added.update(tree.flatten(params, leaf.is_node).keys() & LLAMA.slots().keys())
        return LLAMA.apply(params, jnp.zeros((1, 2), jnp.int32)) if added else materialize(params)

    got = jax.eval_shape(adapted, base)
    assert got == (jax.ShapeDtypeStruct((1, 2, 32), jnp.float32) if added else base)


STUDIES = {
    "classification": classification.Study,
    "forgetting": forgetting.Study,
    "loss_landscape": loss_landscape.Study,
    "low_rank": low_rank.Study,
    "lr_schedule": lr_schedule.Study,
    "numerics": numerics.Study,
    "pretrain": pretrain.Study,
    "scaling": scaling.Study,
    "search": search.Study,
}


def choices(study: str) -> list[list[str]]:
    return [[], *([f"experiment={Path(p).name}"] for p in PRESETS if Path(p).name.startswith(study))]


@pytest.mark.parametrize(("study", "overrides"), [(s, o) for s in STUDIES for o in choices(s)], ids=str)
def test_a_study_and_its_presets_fit_its_schema(study: str, overrides: list[str]):
    node = config.compose(study, overrides)
    node.pop("experiment", None)
    complete = config.validate(node, schema=STUDIES[study])
    assert config.validate(complete, schema=STUDIES[study]) == complete


def test_every_preset_belongs_to_a_study():
    assert all(Path(preset).name.startswith(tuple(STUDIES)) for preset in PRESETS)


def test_the_arms_of_the_study_of_learning_rates_are_programs_and_its_claims_name_them():
    node = config.validate(config.compose("lr_schedule"), schema=lr_schedule.Study)
    study = lr_schedule.Study(**node)
    members = study.members()
    assert len(members) == len(study.arms) * len(study.multiples) * len(study.seeds)
    assert len({m.program for m in members}) == len(study.arms) - 2  # warm-up and decay of the state are numbers
    arms = {m.method for m in members}
    said = [claim["effect"] for claim in study.claims.values()]
    assert {effect[side] for effect in said for side in ("arm", "against")} <= arms
    (one,) = lr_schedule.Study(**(node | {"seed": 7})).members()
    assert (one.seed, one.numbers["optim.lr"]) == (7, node["optim"]["lr"])


def test_the_ranks_of_the_study_of_low_rank_updates_share_programs_and_its_claims_name_them():
    study = low_rank.Study(**config.validate(config.compose("low_rank"), schema=low_rank.Study))
    members, methods = study.members(), study.methods()
    assert len(members) == len(methods) * len(study.multiples) * len(study.seeds)
    assert len({m.program for m in members}) == len(study.arms)
    assert {m.numbers.get("adapt.effective_rank") for m in members if m.method == "lora_r4"} == {4.0}
    assert (methods["lora_r4"]["family"], methods["lora_r4"]["rank"]) == ("lora", 4)
    assert [methods[name].get("rank") for name in ("full", "subspace_d100")] == [None, None]
    said = [claim["effect"] for claim in study.claims.values()]
    assert {effect[side] for effect in said for side in ("arm", "against")} <= {*methods}


def test_the_evaluation_fits_its_schema():
    complete = config.validate(config.compose("evaluate", ["text=some.txt"]), schema=Evaluation)
    assert complete["delta"] is None


def test_a_value_that_only_the_user_knows_is_asked_for():
    with pytest.raises(config.ConfigError, match="path"):
        config.compose("domain/text")


def test_yaml_text_holds_the_config():
    import yaml

    node = config.validate(node_of("optim/adamw"))
    assert yaml.safe_load(config.to_yaml(node)) == node
