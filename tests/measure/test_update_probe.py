"""What is measured of updates while training."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import leaf
from adaptlab.adapt import Adaptation, full, lora, pissa, prepared
from adaptlab.measure.update_probe import (
    METRICS,
    make_update_probe,
    make_update_slot_probe,
    measured_updates,
    named,
)

L, D, F = 2, 6, 5


def base() -> Any:
    draw = functools.partial(jax.random.normal, shape=(L, D, F))
    kernel, other = draw(jax.random.key(0)), draw(jax.random.key(1))
    return {"layers": {"a": {"kernel": kernel}, "norm": {"scale": jnp.ones((L, D))}}, "head": {"kernel": other[0]}}


def trained(adaptation: Adaptation, seed: int = 0) -> Any:
    delta = adaptation.init(jax.random.key(0), base())
    noise = jax.random.key(seed)
    return jax.tree.map(lambda x: x + 0.1 * jax.random.normal(noise, x.shape), delta)


def probed(adaptation: Adaptation, delta: Any, **wanted: Any) -> dict[str, float]:
    probe = make_update_probe(
        measured_updates(**wanted), lambda numbers, base, delta: adaptation.bind(base, delta), base()
    )
    return probe({}, base(), delta)


@pytest.mark.parametrize("adaptation", [lora(2), full()], ids=["lora", "full"])
def test_every_metric_is_that_of_the_merged_update(adaptation: Adaptation):
    delta = trained(adaptation)
    found = probed(adaptation, delta, singular_values=(1, 2))
    w = np.asarray(base()["layers"]["a"]["kernel"], np.float64)
    change = np.asarray(leaf.dense(adaptation.bind(base(), delta)["layers"]["a"]["kernel"]), np.float64) - w
    for i in range(L):
        s = np.linalg.svd(change[i], compute_uv=False)
        wanted = {
            "norm": np.linalg.norm(change[i]),
            "relative_norm": np.linalg.norm(change[i]) / np.linalg.norm(w[i]),
            "spectral_ratio": s[0] / np.linalg.norm(w[i], 2),
            "stable_rank": (s**2).sum() / s[0] ** 2,
            "sigma_1": s[0],
            "sigma_2": s[1],
        }
        for what, value in wanted.items():
            assert found[f"update/{what}/layers.a/{i}"] == pytest.approx(value, rel=1e-4), what
    assert {name.split("/")[1] for name in found} == {*METRICS, "sigma_1", "sigma_2"}


def test_an_update_that_is_not_there_yet_has_a_size_but_no_rank():
    adaptation = lora(2)
    found = probed(adaptation, adaptation.init(jax.random.key(0), base()))
    assert found["update/relative_norm/layers.a/0"] == 0
    assert found["update/cosine/layers.a/1"] == 1
    assert not [name for name in found if "rank/" in name]


def test_pissa_starts_at_the_base_and_its_update_is_that_of_the_base_not_of_the_residual():
    adaptation = pissa(2)
    start = prepared(adaptation, base())
    probe = make_update_probe(measured_updates(metrics=["norm"]), lambda numbers, *args: adaptation.bind(*args), start)
    assert probe({}, start, adaptation.init(jax.random.key(0), start))["update/norm/layers.a/0"] < 1e-5
    delta = jax.tree.map(lambda x: x + 0.1, adaptation.init(jax.random.key(0), start))
    change = leaf.dense(adaptation.bind(start, delta)["layers"]["a"]["kernel"]) - base()["layers"]["a"]["kernel"]
    found = probe({}, start, delta)
    assert found["update/norm/layers.a/1"] == pytest.approx(float(jnp.linalg.norm(change[1])), rel=1e-4)


def test_only_what_is_wanted_is_measured():
    found = probed(full(), trained(full()), select=".*/kernel", metrics=["angle"])
    assert list(found) == ["update/angle/head", "update/angle/layers.a/0", "update/angle/layers.a/1"]


def test_slots_are_measured_as_each_is_alone():
    adaptation, wanted = lora(2), measured_updates()
    deltas = [trained(adaptation, seed) for seed in (0, 1)]
    bind = lambda numbers, base, delta: adaptation.bind(base, delta)  # noqa: E731
    over = lambda one: jax.vmap(one, in_axes=(0, None))  # noqa: E731
    many = make_update_slot_probe(wanted, bind, over, base())
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *deltas)
    slots = many({}, stacked, np.array([True, True]), base())
    for slot, delta in enumerate(deltas):
        alone = probed(adaptation, delta)
        assert slots(slot).keys() == alone.keys()
        assert slots(slot) == pytest.approx(alone, rel=1e-4)


def test_names_have_the_matrix_and_its_layer():
    assert named("norm", "head/kernel", np.array(2.0)) == {"update/norm/head": 2.0}
    assert list(named("norm", "layers/experts/up/kernel", np.ones((1, 2)))) == [
        "update/norm/layers.experts.up/0.0",
        "update/norm/layers.experts.up/0.1",
    ]


def test_settings_that_measure_nothing_are_refused():
    with pytest.raises(ValueError, match=r"metrics=\['rank'\] cannot be measured of updates; choose from"):
        measured_updates(metrics=["rank"])
    with pytest.raises(ValueError, match="counted from 1"):
        measured_updates(singular_values=[0])
    with pytest.raises(ValueError, match="matches nothing"):
        probed(full(), trained(full()), select="layer/.*")
