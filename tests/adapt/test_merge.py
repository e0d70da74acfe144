import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import config, tree
from adaptlab.adapt import full, lora, materialize, merge, selected
from scripts.merge import Merging
from scripts.merge import merge as merge_saved
from tests.laws.table import scattered

BASE = scattered({"q": {"kernel": jnp.zeros((2, 6, 4))}, "k": {"kernel": jnp.zeros((2, 6, 4))}, "b": jnp.zeros(3)}, 0)
KEY = jax.random.key(0)
# By peft 0.21 and torch 2.13; the file says which functions.
PEFT = json.loads((Path(__file__).parents[1] / "golden" / "peft_merge.json").read_text())


def models(n: int = 3) -> list[Any]:
    return [scattered(BASE, seed + 1) for seed in range(n)]


def assert_close(got: Any, wanted: Any) -> None:
    assert tree.flatten(got).keys() == tree.flatten(wanted).keys()
    for path, x in tree.flatten(wanted).items():
        np.testing.assert_allclose(tree.flatten(got)[path], x, rtol=1e-5, atol=1e-6, err_msg=path)


@pytest.mark.parametrize(
    ("name", "method"),
    [
        ("task_arithmetic", merge.task_arithmetic()),
        ("ties_mass_0.3", merge.ties(density=0.3, trim="tensor")),
        ("ties_count_0.5", merge.ties(density=0.5, trim="tensor", elect="count")),
    ],
)
def test_merged_tensors_are_those_of_peft(name: str, method: merge.Merge):
    vectors = [{"w": np.asarray(v, np.float32)} for v in PEFT["vectors"]]
    np.testing.assert_allclose(method.combine(vectors, PEFT["weights"], 0)["w"], PEFT[name], rtol=1e-6, atol=1e-7)


def test_a_uniform_soup_is_the_mean_of_the_models():
    mean = jax.tree.map(lambda *x: sum(x[1:], x[0]) / 3, *models())
    assert_close(merge.merge_weights(merge.average(), BASE, models()), mean)


def test_task_arithmetic_adds_changes_and_takes_them_away():
    one, other, _ = models()
    got = merge.merge_weights(merge.task_arithmetic(scale=0.5), BASE, [one, other], [2.0, -1.0])
    assert_close(got, jax.tree.map(lambda b, x, y: b + (x - b) - 0.5 * (y - b), BASE, one, other))
    assert_close(merge.merge_weights(merge.task_arithmetic(), BASE, [one, one], [1.0, -1.0]), BASE)


def test_ties_keeps_the_largest_of_the_whole_vector_unless_told_of_each_tensor():
    small, large = np.array([0.1, 0.2, -0.3, 0.4], np.float32), np.array([10, -20, 30, -40], np.float32)
    vectors = [{"small": small, "large": large}]
    whole = merge.ties(density=0.5).combine(vectors, [1.0], 0)
    assert not np.any(whole["small"])
    np.testing.assert_array_equal(whole["large"], large)
    each = merge.ties(density=0.5, trim="tensor").combine(vectors, [1.0], 0)
    np.testing.assert_array_equal(each["small"], np.array([0, 0, -0.3, 0.4], np.float32))


def test_ties_averages_only_what_has_the_elected_sign():
    vectors = [
        {"w": np.array([3, 1, -1], np.float32)},
        {"w": np.array([-1, 2, -5], np.float32)},
        {"w": np.array([1, -1, 0], np.float32)},
    ]
    got = merge.ties(density=1.0, scale=2.0).combine(vectors, [1.0] * 3, 0)["w"]
    np.testing.assert_allclose(got, [4.0, 3.0, -6.0])


def test_dare_drops_and_rescales_so_that_the_mean_stays_and_its_seed_decides_what():
    vector = {"w": np.ones((200, 200), np.float32)}
    first, again, other = (merge.dare(density=0.2).combine([vector], [1.0], seed)["w"] for seed in (0, 0, 1))
    assert set(np.unique(first)) == {0.0, 5.0}
    assert abs(first.mean() - 1) < 4 * 5 * np.sqrt(0.2 * 0.8 / first.size)
    np.testing.assert_array_equal(first, again)
    assert np.any(first != other)
    kept = [first != 0, merge.dare(density=0.2).combine([vector] * 2, [0.0, 1.0], 0)["w"] != 0]
    assert np.any(kept[0] != kept[1])  # each vector draws its own


def test_a_greedy_soup_takes_in_what_helps_and_leaves_out_what_harms():
    wanted = models(1)[0]
    noise = jax.tree.map(lambda x: 0.1 * np.ones_like(x), wanted)
    near, far = (jax.tree.map(lambda w, e, s=s: w + s * e, wanted, noise) for s in (1.0, 50.0))
    opposite = jax.tree.map(lambda w, e: w - 1.1 * e, wanted, noise)

    def loss(model: Any) -> float:
        return float(tree.norm(jax.tree.map(lambda x, y: jnp.asarray(x - y), model, wanted)))

    soup, members = merge.greedy_soup([far, near, opposite], loss)
    assert members == [1, 2]
    assert loss(soup) < loss(near)


def test_concatenated_factors_are_the_exact_sum_of_the_updates():
    parts = [lora(2, alpha=3.0, select="q/kernel"), lora(3, alpha=1.0, effective_rank=2.0, select=".*/kernel")]
    bound = [p.bind(BASE, scattered(p.init(KEY, BASE), i)) for i, p in enumerate(parts)]
    delta, config = merge.concatenated(BASE, bound, [1.0, -0.5])
    assert config["rank"] == 5
    assert delta["q"]["kernel"]["a"].shape == (2, 6, 5)
    joined = lora(config["rank"], alpha=config["alpha"], select=config["select"])
    assert_close(joined.init(KEY, BASE), jax.tree.map(lambda x: x, joined.init(KEY, BASE)))
    device = jax.tree.map(jnp.asarray, delta)
    assert {p: x.shape for p, x in tree.flatten(device).items()} == {
        p: x.shape for p, x in tree.flatten(joined.init(KEY, BASE)).items()
    }
    wanted = jax.tree.map(lambda b, x, y: b + (x - b) - 0.5 * (y - b), BASE, *map(materialize, bound))
    assert_close(materialize(joined.bind(BASE, device)), wanted)


def test_factors_of_something_else_cannot_be_concatenated():
    adaptation = full()
    with pytest.raises(ValueError, match="is not a low-rank update of the base's weight"):
        merge.concatenated(BASE, [adaptation.bind(BASE, adaptation.init(KEY, BASE))], [1.0])


def test_deltas_that_are_weights_merge_as_changes_and_factors_as_they_are():
    weights = selected("q/kernel", layers=[1, None], stack="q/.*")
    deltas = [scattered(weights.init(KEY, BASE), seed) for seed in (1, 2)]
    got = merge.merge_deltas(merge.task_arithmetic(), BASE, deltas)
    start = BASE["q"]["kernel"][1:]
    one, other = (d["1:"]["q"]["kernel"] for d in deltas)
    assert_close(got, {"1:": {"q": {"kernel": one + other - start}}})
    factors = [scattered(lora(2, select="q/kernel").init(KEY, BASE), seed) for seed in (1, 2)]
    assert_close(merge.merge_deltas(merge.average(), BASE, factors), jax.tree.map(lambda x, y: (x + y) / 2, *factors))


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="2 models and 1 weights"):
        merge.merge_weights(merge.average(), BASE, models(2), [1.0])
    odd = {**models(1)[0], "extra": jnp.zeros(1)}
    with pytest.raises(ValueError, match=r"Model 1 of 2 has other paths or shapes .*\['extra'\]"):
        merge.merge_weights(merge.average(), BASE, [models(1)[0], odd])
    with pytest.raises(ValueError, match="density=0 is not above 0"):
        merge.dare(density=0)


def job(*overrides: str) -> Merging:
    node = config.compose("merge", ["deltas=[a.safetensors,b.safetensors]", "out=c.safetensors", *overrides])
    return Merging(**config.validate(node, schema=Merging))


@pytest.mark.parametrize("method", ["average", "task_arithmetic", "ties", "dare"])
def test_every_method_is_one_word_of_a_command(method: str):
    assert isinstance(config.instantiate(job(f"method={method}").method), merge.Merge)


def test_a_method_below_another_is_chosen_by_its_word():
    assert job("method=dare", "method@method.merge=ties").method["merge"]["_target_"].endswith(".ties")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["weights=[1.0]"], r"weights=\[1.0\] for 2 deltas: give deltas, and one weight for each"),
        (["method=ties", "greedy=text.txt"], r"it goes with method=average, space=weights and no weights"),
        (["method=ties", "space=factors"], "ties is not a weighted sum: choose space=weights"),
    ],
    ids=str,
)
def test_what_cannot_be_merged_is_said_before_anything_is_read(overrides: list[str], message: str):
    with pytest.raises(config.ConfigError, match=message):
        merge_saved(job(*overrides))
