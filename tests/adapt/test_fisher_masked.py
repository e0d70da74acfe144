from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import tree
from adaptlab.adapt import (
    fisher_mask,
    fisher_masked,
    load_mask,
    lora,
    materialize,
    prepared,
    save_delta,
    save_mask,
)
from adaptlab.measure import fisher_diagonal, squared_batch_gradients
from adaptlab.models import LlamaShape, language_modelling, llama
from tests.laws.table import scattered, text_batch

KEY = jax.random.key(0)
MODEL = llama(LlamaShape(32, 16, 2, 4, 2, 6, 20))
BASE = scattered(jax.jit(MODEL.init)(KEY), 0)
LOSS = language_modelling(MODEL)


def rows(batch: Any) -> list[Any]:
    return [jax.tree.map(lambda x, i=i: x[i : i + 1], batch) for i in range(len(batch.tokens))]


@pytest.fixture(scope="module")
def fisher() -> Any:
    return fisher_diagonal(LOSS, BASE, [text_batch(0), text_batch(1)], KEY, chunk=4)


def test_the_diagonal_is_the_mean_of_the_squared_gradients_of_the_rows(fisher: Any):
    gradient = jax.jit(jax.grad(lambda p, row: LOSS(p, row, KEY).sum))
    squares = [jax.tree.map(jnp.square, gradient(BASE, r)) for i in range(2) for r in rows(text_batch(i))]
    wanted = jax.tree.map(lambda *x: sum(x[1:], x[0]) / len(x), *squares)
    for path, x in tree.flatten(wanted).items():
        scale = float(jnp.max(x))
        np.testing.assert_allclose(tree.flatten(fisher)[path], x, rtol=1e-4, atol=1e-5 * scale, err_msg=path)


def test_rows_without_targets_do_not_count(fisher: Any):
    batch = text_batch(0)
    weights = np.asarray(batch.weights).copy()
    weights[4:] = 0
    with_padding = fisher_diagonal(LOSS, BASE, [batch._replace(weights=jnp.asarray(weights))], KEY)
    without = fisher_diagonal(LOSS, BASE, [jax.tree.map(lambda x: x[:4], batch)], KEY)
    for path, x in tree.flatten(without).items():
        np.testing.assert_allclose(tree.flatten(with_padding)[path], x, rtol=1e-4, atol=1e-6, err_msg=path)
    with pytest.raises(ValueError, match="There are no batches"):
        fisher_diagonal(LOSS, BASE, [], KEY)


def test_squared_batch_gradients_are_what_their_name_says():
    gradient = jax.grad(lambda p: LOSS(p, text_batch(0), KEY).value)(BASE)
    got = squared_batch_gradients(LOSS, BASE, [text_batch(0)], KEY)
    for path, g in tree.flatten(gradient).items():
        np.testing.assert_allclose(tree.flatten(got)[path], g**2, rtol=1e-4, atol=1e-8, err_msg=path)


@pytest.mark.parametrize("scope", ["all", "tensor"])
def test_a_mask_chooses_the_largest(fisher: Any, scope: Any):
    mask = tree.flatten(fisher_mask(fisher, 0.1, select="layers/.*kernel", scope=scope))
    flat = {p: np.ravel(x) for p, x in tree.flatten(fisher).items() if p.startswith("layers/") and p.endswith("kernel")}
    inside = {p: np.isin(np.arange(x.size), mask.get(p, [])) for p, x in flat.items()}
    groups = [list(flat)] if scope == "all" else [[p] for p in flat]
    for paths in groups:
        values, chosen = (np.concatenate([part[p] for p in paths]) for part in (flat, inside))
        assert chosen.sum() == round(0.1 * values.size)
        assert values[chosen].min() >= values[~chosen].max()


def test_only_the_chosen_weights_move_and_each_by_its_value(fisher: Any):
    mask = fisher_mask(fisher, 0.02)
    adaptation = fisher_masked(mask)
    base = prepared(adaptation, BASE)
    delta = scattered(adaptation.init(KEY, base), 1)
    merged = tree.flatten(materialize(adaptation.bind(base, delta)))
    chosen = tree.flatten(mask)
    assert tree.count(delta) == round(0.02 * tree.count(BASE))
    for path, w in tree.flatten(BASE).items():
        change = np.zeros(w.size, np.float32)
        if path in chosen:
            change[chosen[path]] = tree.flatten(delta)[f"{path}/values"]
        np.testing.assert_allclose(np.ravel(merged[path] - w), change, atol=1e-6, err_msg=path)


def test_a_mask_is_saved_for_its_base_and_a_delta_is_no_mask(fisher: Any, tmp_path: Path):
    mask = fisher_mask(fisher, 0.05)
    save_mask(tmp_path / "mask.safetensors", mask, made={"density": 0.05}, base="0" * 64)
    assert tree.digest(load_mask(tmp_path / "mask.safetensors", base="0" * 64)) == tree.digest(mask)
    from_file = fisher_masked(str(tmp_path / "mask.safetensors"))
    assert tree.count(from_file.init(KEY, BASE)) == tree.count(mask)
    with pytest.raises(ValueError, match="was trained on the base with SHA-256"):
        load_mask(tmp_path / "mask.safetensors", base="1" * 64)
    save_delta(tmp_path / "delta.safetensors", lora(1).init(KEY, BASE), adapt={"_target_": "x"}, base="0" * 64)
    with pytest.raises(ValueError, match="is a delta, not a mask"):
        fisher_masked(str(tmp_path / "delta.safetensors"))


def test_a_mask_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="chooses weights of tail, which the base does not have"):
        prepared(fisher_masked({"tail": np.zeros(1, np.int32)}), BASE)
    with pytest.raises(ValueError, match="chooses place 99 of norm/scale, which has 16"):
        prepared(fisher_masked({"norm": {"scale": np.full(1, 99, np.int32)}}), BASE)
    mask = {"norm": {"scale": np.zeros(1, np.int32)}}
    with pytest.raises(ValueError, match="norm/scale: the base was not prepared for this mask"):
        fisher_masked(mask).bind(BASE, fisher_masked(mask).init(KEY, BASE))
    with pytest.raises(ValueError, match=r"density=2.0 is above 0 and at most 1"):
        fisher_mask(BASE, 2.0)
