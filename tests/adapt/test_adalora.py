import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import tree
from adaptlab.adapt import adalora, lora, materialize, orthogonality
from adaptlab.optim import adalora as optimiser
from adaptlab.optim import sgd
from adaptlab.train import device_numbers, make_program
from tests.laws.table import MODELS, scattered

BASE = scattered({"layers": {"q": {"kernel": jnp.zeros((2, 6, 4))}}}, 0)
KEY = jax.random.key(0)


def test_the_merged_matrix_is_the_published_formula():
    adaptation = adalora(3, alpha=6.0)
    delta = scattered(adaptation.init(KEY, BASE), 1)
    p, values, q = (np.asarray(delta["layers"]["q"]["kernel"][name]) for name in ("p", "lambda", "q"))
    merged = materialize(adaptation.bind(BASE, delta))["layers"]["q"]["kernel"]
    wanted = np.asarray(BASE["layers"]["q"]["kernel"]) + 2.0 * (p * values[:, None]) @ q
    np.testing.assert_allclose(merged, wanted, rtol=1e-5, atol=1e-6)


def test_lambda_starts_at_zero_and_p_and_q_normal():
    base = {"layers": {"q": {"kernel": jnp.zeros((2, 300, 200))}}}
    delta = adalora(10, stddev=0.5).init(KEY, base)["layers"]["q"]["kernel"]
    assert not np.any(delta["lambda"])
    np.testing.assert_allclose([np.std(delta["p"]), np.std(delta["q"])], 0.5, rtol=0.03)


def test_orthogonal_factors_are_free_and_others_pay_what_the_formula_says():
    term = orthogonality(strength=0.5)
    delta = scattered(adalora(3).init(KEY, BASE), 1)
    kernel = delta["layers"]["q"]["kernel"]
    wanted = 0.0
    for p, q in zip(np.asarray(kernel["p"]), np.asarray(kernel["q"]), strict=True):
        wanted += 0.5 * (np.sum((p.T @ p - np.eye(3)) ** 2) + np.sum((q @ q.T - np.eye(3)) ** 2))
    np.testing.assert_allclose(term(delta, BASE), wanted, rtol=1e-5)
    orthonormal = kernel | {"p": jnp.linalg.qr(kernel["p"])[0], "q": jnp.linalg.qr(kernel["q"].mT)[0].mT}
    np.testing.assert_allclose(term({"layers": {"q": {"kernel": orthonormal}}}, BASE), 0.0, atol=1e-10)


def test_orthogonality_of_another_adaptation_is_an_error():
    with pytest.raises(ValueError, match=r"orthogonality finds no AdaLoRA"):
        orthogonality(strength=0.5)(lora(2).init(KEY, BASE), BASE)


def test_a_vector_is_an_error():
    with pytest.raises(ValueError, match=r"adalora selects 'scale' of shape \(3,\), which is not a matrix"):
        adalora(select="scale").init(KEY, {"scale": jnp.ones(3)})


def test_a_program_trains_prunes_to_the_target_and_grows_orthogonal():
    row, steps = MODELS["mlp"], 12
    base = scattered(row.model.init(KEY), 0)
    program = make_program(
        lambda numbers: row.loss,
        lambda numbers: adalora(4, alpha=numbers["alpha"], select=row.matrices, stddev=0.5),
        lambda numbers: optimiser(0.05, total_steps=steps, target_rank=numbers["target"], every=1.0),
        terms=lambda numbers: [orthogonality(strength=0.3)],
    )
    numbers, seed = device_numbers({"alpha": 4.0, "target": 2.0}, 0)
    state = program.init(numbers, seed, base)
    first, losses = orthogonality(strength=1.0)(state.delta, base), []
    for _ in range(steps):
        state, metrics = program.step(numbers, seed, state, base, row.batch(0))
        losses.append(float(metrics["loss"]))
    flat = tree.flatten(state.delta)
    values = [np.asarray(x) for path, x in flat.items() if path.endswith("/lambda")]
    assert sum(np.count_nonzero(x) for x in values) == 2 * len(values)
    assert losses[-1] < losses[0]
    assert orthogonality(strength=1.0)(state.delta, base) < first


def test_with_another_optimiser_all_ranks_stay():
    row = MODELS["mlp"]
    base = scattered(row.model.init(KEY), 0)
    program = make_program(
        lambda numbers: row.loss,
        lambda numbers: adalora(2, select=row.matrices, stddev=0.5),
        lambda numbers: sgd(0.1, total_steps=2),
    )
    numbers, seed = device_numbers({}, 0)
    state = program.init(numbers, seed, base)
    for _ in range(2):
        state, _ = program.step(numbers, seed, state, base, row.batch(0))
    assert all(np.all(x != 0) for path, x in tree.flatten(state.delta).items() if path.endswith("/lambda"))
