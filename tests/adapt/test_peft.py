"""Exchange with PEFT: what it saved and computed, stored; and what we save, which it reads where it is installed."""

import json
import shutil
import warnings
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from adaptlab import adapt, leaf, tree
from adaptlab.adapt import peft
from adaptlab.adapt.files import SavedDelta
from tests.golden import peft_folders, peft_ours

with zipfile.ZipFile(peft_folders.HERE) as stored:
    STORED = sorted({name.partition("/")[0] for name in stored.namelist()} - {"base"})

# What comes back under another type or rank: the same model, and not the same file.
RANDOM = "PyTorch's random matrices: LoRA"
ANOTHER = {
    "llama-vera": RANDOM,
    "bert-vera": RANDOM,
    "gpt2-vera": RANDOM,
    "llama-pissa": "LoRA of twice the rank",
    "gpt2-pissa": "LoRA of twice the rank",
    "gpt2-lora": "the parts of c_attn have ranks of their own",
    "gpt2-dora": "the parts of c_attn have ranks of their own",
    "gpt2-adalora": "the parts of c_attn have ranks of their own",
    "llama-lora_layer": "a layer that is not adapted gets zeros",
    "llama-p_tuning": "its prompt",
    "gpt2-p_tuning": "its prompt",
    "llama-prefix_network": "its keys and values",
}
# By default one of each family computes, and some of our own are written; all of PEFT's are read and written.
QUICK = {"llama-lora_patterns", "llama-prefix", "bert-ia3", "gpt2-dora"}
FEW = {"llama-lora_layer_ranks", "llama-two_loras", "llama-pissa", "llama-vera", "llama-lora_norms", "llama-p_tuning"}
FEW |= {"llama_tied-lora_embedding", "bert-ia3", "bert-prefix", "bert-layer_norm", "gpt2-lora_query_value"}
FEW |= {"gpt2-dora", "gpt2-adalora", "gpt2-tokens", "gpt2-lora_embedding", "encoder-prompt"}
EXPORTED = [case if case in FEW else pytest.param(case, marks=pytest.mark.slow) for case in peft_ours.EXPORTS]
COMPUTED = [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in STORED]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peft")
    with zipfile.ZipFile(peft_folders.HERE) as stored:
        stored.extractall(folder)
    return folder


@pytest.fixture(scope="module")
def bases(folders: Path) -> dict[str, peft_ours.Opened]:
    return {family: peft_ours.opened(folders / "base" / family) for family in peft_folders.FAMILIES}


def base_of(bases: dict[str, peft_ours.Opened], case: str) -> peft_ours.Opened:
    return bases[case.partition("-")[0]]


def loaded(base: peft_ours.Opened, folder: Path) -> SavedDelta:
    return peft.load_peft(folder, base.params, base.checkpoint)


@pytest.mark.parametrize("case", COMPUTED)
def test_an_adapter_of_pefts_computes_the_logits_and_gradients_it_computed_there(folders, bases, case: str):
    base = base_of(bases, case)
    theirs = dict(np.load(folders / case / "reference.npz"))
    logits, gradients = peft_ours.distances(
        peft_ours.computed(base, folders / case), theirs, tied="head" not in base.params
    )
    assert logits < 1e-5
    assert gradients < 1e-5


@pytest.mark.parametrize("case", [case for case in STORED if case not in ANOTHER])
def test_what_peft_saved_is_saved_again_bit_by_bit(folders, bases, case: str, tmp_path: Path):
    base = base_of(bases, case)
    said = peft.save_peft(tmp_path, loaded(base, folders / case), base.params, base.checkpoint, **base.given)
    wanted, got = (load_file(folder / peft.WEIGHTS) for folder in (folders / case, tmp_path))
    assert got.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_array_equal(got[name], x, err_msg=name)
    theirs = json.loads((folders / case / peft.CONFIG).read_text())
    assert theirs.keys() >= said.keys()
    for name in said.keys() & {
        "peft_type",
        "task_type",
        "r",
        "use_rslora",
        "use_dora",
        "fan_in_fan_out",
        "inference_mode",
    }:
        assert said[name] == theirs[name], name
    for name in said.keys() & {"token_indices", "num_virtual_tokens", "token_dim", "num_layers", "num_attention_heads"}:
        assert (name == "num_attention_heads" and theirs[name] != said[name]) or said[name] == theirs[name], name
    assert said.get("lora_alpha", 0) == pytest.approx(theirs.get("lora_alpha", 0), rel=1e-5)


@pytest.mark.parametrize("case", ANOTHER)
def test_what_comes_back_in_another_form_is_the_same_model(folders, bases, case: str, tmp_path: Path):
    base = base_of(bases, case)
    first = loaded(base, folders / case)
    peft.save_peft(tmp_path, first, base.params, base.checkpoint, **base.given)
    second = loaded(base, tmp_path)
    merged = [effect(base, saved) for saved in (first, second)]
    for path, x in merged[0].items():
        np.testing.assert_allclose(merged[1][path], x, rtol=0, atol=2e-6 * max(1.0, np.abs(x).max()), err_msg=path)


def effect(base: peft_ours.Opened, saved: SavedDelta) -> dict[str, np.ndarray]:
    """What all leaves of the bound model stand for."""
    adaptation = peft.built(saved.adapt, **base.given)
    delta = jax.tree.map(jnp.asarray, saved.delta)
    params = adaptation.bind(adapt.prepared(adaptation, base.params), delta)
    slots = {p: params["prompt"].rows() for p in ("prompt",) if p in params}
    if "prefix" in params.get("layers", {}).get("attention", {}):
        keys, values = params["layers"]["attention"]["prefix"].keys_values()
        slots |= {"keys": keys, "values": values}
    plain = {p: x for p, x in tree.flatten(params, leaf.is_node).items() if p not in base.model.slots()}
    return {p: np.asarray(x) for p, x in (slots | tree.flatten(adapt.materialize(tree.unflatten(plain)))).items()}


@pytest.mark.parametrize("case", EXPORTED)
def test_what_we_save_for_peft_comes_back_as_the_same_model(bases, case: str, tmp_path: Path):
    base = base_of(bases, case)
    saved = peft_ours.drawn(base, peft_ours.EXPORTS[case])
    peft.save_peft(tmp_path, saved, base.params, base.checkpoint, **base.given)
    first, second = effect(base, saved), effect(base, loaded(base, tmp_path))
    for path, x in first.items():
        np.testing.assert_allclose(second[path], x, rtol=0, atol=2e-6 * max(1.0, np.abs(x).max()), err_msg=path)


@pytest.mark.parametrize(
    "case", ["llama-lora", "llama-rslora", "llama-dora", "llama-vera", "llama-prefix", "bert-lora"]
)
def test_a_delta_comes_back_from_peft_bit_by_bit(bases, case: str, tmp_path: Path):
    base = base_of(bases, case)
    saved = peft_ours.drawn(base, peft_ours.EXPORTS[case])
    peft.save_peft(tmp_path, saved, base.params, base.checkpoint, **base.given)
    back = loaded(base, tmp_path)
    flat = [{p.removeprefix("own/").removeprefix("head/"): x for p, x in tree.flatten(one.delta).items()}
            for one in (saved, SavedDelta(unchained(back), {}, "", ""))]  # fmt: skip
    assert flat[0].keys() == flat[1].keys()
    for path, x in flat[0].items():
        np.testing.assert_array_equal(flat[1][path], x, err_msg=path)


def unchained(saved: SavedDelta) -> Any:
    if not saved.adapt["_target_"].endswith(".chain"):
        return saved.delta
    return tree.unflatten({p.partition("/")[2]: x for p, x in tree.flatten(saved.delta).items()})


@pytest.mark.parametrize("factory", ["bottleneck", "compacter", "diff_pruning", "bitfit", "random_subspace"])
def test_a_method_that_peft_does_not_have_says_so_and_what_to_do(bases, factory: str):
    base = bases["bert"]
    saved = SavedDelta({}, {"_target_": f"adaptlab.adapt.{factory}"}, "", "")
    with pytest.raises(ValueError, match=rf"PEFT has no method for \['{factory}'\].*save_delta"):
        peft.to_peft(saved, base.params, base.checkpoint, **base.given)


PAIR = ("lora", "ia3")


@pytest.mark.parametrize(
    ("family", "node", "message"),
    [
        ("bert", {"_target_": "adaptlab.adapt.prompt", "length": 2}, "pools the prompt's first position"),
        ("gpt2", {"_target_": "adaptlab.adapt.vera", "rank": 2}, r"one vector for each of the fused modules"),
        ("llama", {"_target_": "adaptlab.adapt.textual_inversion", "count": 1}, "has new ones"),
        ("llama", {"_target_": "adaptlab.adapt.full"}, "only beside one of its methods"),
        (
            "llama",
            {
                "_target_": "adaptlab.adapt.chain",
                "stages": [{"_target_": f"adaptlab.adapt.{m}"} for m in ("lora", "ia3")],
            },
            r"one method, and the delta has \['ia3', 'lora'\]",
        ),
    ],
)
def test_what_peft_cannot_say_is_an_error_with_a_remedy(bases, family: str, node: dict[str, Any], message: str):
    base = bases[family]
    adaptation = peft.built(node, **base.given)
    saved = SavedDelta(adaptation.init(jax.random.key(0), base.params), node, "", "")
    with pytest.raises(ValueError, match=message):
        peft.to_peft(saved, base.params, base.checkpoint, **base.given)


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("llama-lora", {"peft_type": "LOHA"}, r"peft_type='LOHA' is not one of"),
        ("llama-lora", {"bias": "all"}, "bias='all'"),
        ("llama-lora", {"init_lora_weights": "olora"}, "changed the base's own weights"),
        ("llama-lora", {"trainable_token_indices": [1]}, "trainable_token_indices"),
        ("gpt2-lora", {"init_lora_weights": "pissa"}, "PiSSA of the fused"),
    ],
)
def test_an_adapter_that_adaptlab_cannot_be_says_why(folders, bases, case: str, change: dict, message: str):
    base, said = base_of(bases, case), json.loads((folders / case / peft.CONFIG).read_text())
    with pytest.raises(ValueError, match=message):
        peft.from_peft(said | change, load_file(folders / case / peft.WEIGHTS), base.params, base.checkpoint)


def test_an_adapter_of_another_base_names_the_tensors_that_have_no_place(folders, bases):
    with pytest.raises(ValueError, match=r"no place for \['model\.layers\.0\.mlp\.down_proj\.lora_A\.weight'"):
        loaded(bases["gpt2"], folders / "llama-lora")


def test_random_matrices_that_are_not_in_the_file_are_an_error(folders, bases, tmp_path: Path):
    shutil.copytree(folders / "llama-vera", tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / peft.WEIGHTS)
    save_file({name: x for name, x in tensors.items() if "vera_A" not in name}, tmp_path / peft.WEIGHTS)
    with pytest.raises(ValueError, match="save_projection=True"):
        loaded(bases["llama"], tmp_path)


def test_an_adapter_in_half_precision_is_read_as_float32(folders, bases, tmp_path: Path):
    shutil.copytree(folders / "llama-lora", tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / peft.WEIGHTS)
    save_file({name: x.astype(jax.numpy.bfloat16) for name, x in tensors.items()}, tmp_path / peft.WEIGHTS)
    delta = tree.flatten(loaded(bases["llama"], tmp_path).delta)
    for path, x in tree.flatten(loaded(bases["llama"], folders / "llama-lora").delta).items():
        assert delta[path].dtype == np.float32
        np.testing.assert_allclose(delta[path], x, rtol=2**-8)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")  # theirs
@pytest.mark.parametrize("case", peft_ours.EXPORTS)
def test_peft_reads_what_we_save_and_computes_our_logits_and_gradients(folders, bases, case: str, tmp_path: Path):
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    base, folder = base_of(bases, case), tmp_path / case
    saved = peft_ours.drawn(base, peft_ours.EXPORTS[case])
    peft.save_peft(folder, saved, base.params, base.checkpoint, **base.given)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft_folders.reference(folders / "base" / case.partition("-")[0], folder)
    ours = peft_ours.logits_with(base, saved, case.partition("-")[0], typed="-prompt" not in case)
    np.testing.assert_allclose(ours, theirs["logits"], rtol=0, atol=1e-5 * np.abs(ours).max())
    _, gradients = peft_ours.distances(peft_ours.computed(base, folder), theirs, tied="head" not in base.params)
    assert gradients < 1e-5


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore")  # theirs
def test_what_peft_saves_here_and_now_is_what_is_stored(folders, tmp_path: Path):
    import torch

    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peft_folders.make(tmp_path)
    for case in STORED:
        stored, fresh = (load_file(folder / case / peft.WEIGHTS) for folder in (folders, tmp_path))
        assert {n: x.shape for n, x in stored.items()} == {n: x.shape for n, x in fresh.items()}, case
