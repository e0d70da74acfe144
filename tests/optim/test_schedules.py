"""Schedules: against PyTorch's and transformers' own, and what must hold for each."""

import csv
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import optim
from adaptlab.optim import Schedule, constant, cosine, linear

GOLDEN = Path(__file__).parents[1] / "golden" / "lr_schedules.csv"
WARM = {"warmup": 0.1, "offset": 0.0}
COLD = {"warmup": 0.0, "offset": 0.0}
PHASES = {"warmup": 0.25, "annealing": "linear", "three_phase": True}

# Row of the golden file -> (factory, arguments, peak). A momentum is its own value: its peak is 1.
REFERENCES: dict[str, tuple[Callable[..., Schedule], dict[str, Any], float]] = {
    "torch_OneCycleLR(max_lr=1e-2,total_steps=100)_lr": (optim.one_cycle, {"warmup": 0.3}, 1e-2),
    "torch_OneCycleLR(max_lr=1e-2,total_steps=100)_momentum": (optim.one_cycle_momentum, {"warmup": 0.3}, 1.0),
    "torch_OneCycleLR(three_phase,linear)_lr": (optim.one_cycle, PHASES | {"initial": 0.1, "final": 1e-4}, 1e-2),
    "torch_OneCycleLR(three_phase,linear)_momentum": (optim.one_cycle_momentum, PHASES, 1.0),
    "torch_CyclicLR(1e-4,1e-2,step_up=10,triangular)": (
        optim.cyclic,
        {"up": 10.0, "down": 10.0, "initial": 0.01},
        1e-2,
    ),
    "torch_CyclicLR(1e-4,1e-2,up=8,down=12,triangular2)": (
        optim.cyclic,
        {"up": 8.0, "down": 12.0, "initial": 0.01, "decay": 0.5, "mode": "triangular2"},
        1e-2,
    ),
    "torch_CyclicLR(1e-4,1e-2,step_up=10,exp_range,g=0.99)": (
        optim.cyclic,
        {"up": 10.0, "down": 10.0, "initial": 0.01, "decay": 0.99**20, "mode": "exp_range"},
        1e-2,
    ),
    "torch_CosineAnnealingLR(T_max=100,eta_min=1e-5)": (cosine, COLD | {"final": 0.01}, 1e-3),
    "torch_CosineAnnealingWarmRestarts(T0=10,Tmult=2,eta_min=1e-5)": (
        optim.cosine_restarts,
        {"period": 10.0, "growth": 2.0, "final": 0.01},
        1e-3,
    ),
    "torch_PolynomialLR(100,power=2)": (optim.polynomial, COLD | {"power": 2.0}, 1e-3),
    "torch_ExponentialLR(0.97)": (optim.exponential, COLD | {"final": 0.97**100}, 1e-3),
    "torch_StepLR(30,0.1)": (optim.step_decay, {"at": (0.3, 0.6, 0.9), "factor": 0.1}, 1e-3),
    "torch_MultiStepLR([20,60],0.3)": (optim.step_decay, {"at": (0.2, 0.6), "factor": 0.3}, 1e-3),
    "torch_LinearLR(0.1->1,20)": (constant, {"warmup": 0.2, "initial": 0.1, "offset": 0.0}, 1e-3),
    "hf_constant_with_warmup(10)": (constant, WARM, 1e-3),
    "hf_linear(10,100)": (linear, WARM, 1e-3),
    "hf_cosine(10,100)": (cosine, WARM, 1e-3),
    "hf_cosine(10,100,cycles=1.5)": (cosine, WARM | {"cycles": 1.5}, 1e-3),
    "hf_cosine_hard_restarts(10,100,3)": (optim.cosine_restarts, WARM | {"period": 30.0}, 1e-3),
    "hf_polynomial(10,100,lr_end=1e-7,power=2)": (optim.polynomial, WARM | {"power": 2.0, "final": 1e-4}, 1e-3),
    "hf_inverse_sqrt(10)": (optim.inverse_sqrt, WARM, 1e-3),
    "hf_inverse_sqrt(10,timescale=25)": (optim.inverse_sqrt, WARM | {"timescale": 0.25}, 1e-3),
    "hf_cosine_with_min_lr(10,100,min_lr_rate=0.1)": (cosine, WARM | {"final": 0.1}, 1e-3),
    **{
        f"hf_wsd(warm10,stable60,decay30,min0.1,{shape})": (
            optim.wsd,
            WARM | {"decay": 0.3, "initial": 0.1, "final": 0.1, "shape": shape},
            1e-3,
        )
        for shape in ("linear", "cosine", "1-sqrt")
    },
    "formula_STLR(T=100,cut_frac=.1,ratio=32,eta_max=.01)": (
        optim.slanted_triangular,
        {"cut": 0.1, "ratio": 32.0},
        1e-2,
    ),
}


def golden() -> dict[str, np.ndarray]:
    lines = [line for line in GOLDEN.read_text().splitlines() if not line.startswith("#")]
    rows = {row[0]: row[2:] for row in csv.reader(lines[1:])}
    return {name: np.asarray([float(x) for x in row if x]) for name, row in rows.items()}


def values(schedule: Schedule, total: int) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(lambda step: schedule(step, total)))(jnp.arange(total)))


def numbers_of(arguments: dict[str, Any]) -> dict[str, float]:
    return {name: x for name, x in arguments.items() if isinstance(x, float)}


def assert_close(got: Any, wanted: Any) -> None:
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-15)


def test_every_row_of_the_golden_file_is_compared():
    assert golden().keys() == REFERENCES.keys()


@pytest.mark.parametrize("name", REFERENCES)
def test_values_are_those_of_the_reference(name: str):
    make, arguments, peak = REFERENCES[name]
    wanted = golden()[name]
    assert_close(peak * values(make(**arguments), 100).astype(float)[: len(wanted)], wanted)


@pytest.mark.parametrize("name", REFERENCES)
def test_values_are_those_of_the_reference_with_every_number_traced(name: str):
    make, arguments, peak = REFERENCES[name]
    numbers = numbers_of(arguments)

    @jax.jit
    @jax.vmap
    def factors(numbers: dict[str, jax.Array]) -> jax.Array:
        return jax.vmap(lambda step: make(**(arguments | numbers))(step, 100))(jnp.arange(100))

    wanted = golden()[name]
    rows = factors({k: jnp.full(2, v) for k, v in numbers.items()})
    assert_close(peak * np.asarray(rows, float)[1, : len(wanted)], wanted)


@pytest.mark.parametrize("make", [constant, linear, cosine, optim.polynomial, optim.inverse_sqrt, optim.wsd])
def test_warm_up_rises_in_equal_parts_from_the_first_update(make: Any):
    factors = values(make(warmup=0.2), 20)
    np.testing.assert_allclose(factors[:4], [0.25, 0.5, 0.75, 1.0], rtol=1e-6)
    assert np.all(factors[4:] <= 1)
    assert np.all(np.diff(factors[4:]) <= 0)


@pytest.mark.parametrize("make", [constant, linear, cosine, optim.polynomial, optim.inverse_sqrt, optim.wsd])
def test_an_offset_of_zero_is_the_same_curve_one_update_later(make: Any):
    begun, counted = values(make(warmup=0.2, offset=0.0), 21), values(make(warmup=0.2), 21)
    assert begun[0] == 0
    np.testing.assert_array_equal(begun[1:], counted[:-1])


@pytest.mark.parametrize("make", [linear, cosine, optim.polynomial, optim.exponential, optim.wsd])
@pytest.mark.parametrize("final", [0.01, 0.1])
def test_decay_ends_at_its_final_value_at_the_last_update(make: Any, final: float):
    np.testing.assert_allclose(values(make(warmup=0.1, final=final), 50)[-1], final, rtol=1e-6)


@pytest.mark.parametrize("make", [linear, cosine, optim.polynomial, optim.wsd])
def test_decay_to_zero_ends_at_exactly_zero(make: Any):
    assert values(make(warmup=0.1, final=0.0), 50)[-1] == 0


@pytest.mark.parametrize("shape", ["linear", "cosine", "1-sqrt", "square", "exponential"])
def test_wsd_is_one_until_its_decay_and_then_falls_to_its_end(shape: Any):
    factors = values(optim.wsd(warmup=0.1, decay=0.4, shape=shape, final=0.01), 100)
    np.testing.assert_array_equal(factors[9:60], 1)
    assert np.all(np.diff(factors[59:]) < 0)
    p = np.arange(1, 41) / 40
    fall = {"linear": 1 - p, "cosine": (1 + np.cos(np.pi * p)) / 2, "1-sqrt": 1 - np.sqrt(p), "square": 1 - p**2}
    wanted = 0.01**p if shape == "exponential" else 0.01 + 0.99 * fall[shape]
    np.testing.assert_allclose(factors[60:], wanted, rtol=1e-6)


def test_constant_stays_at_one():
    np.testing.assert_array_equal(values(constant(), 7), np.ones(7))


def test_linear_is_a_straight_line_between_warm_up_and_end():
    factors = values(linear(warmup=0.1, final=0.2), 10)
    np.testing.assert_allclose(factors, [1 - 0.8 * i / 9 for i in range(10)], rtol=1e-6)


def test_cosine_is_half_a_period_between_warm_up_and_end():
    factors = values(cosine(warmup=0.1, final=0.2), 10)
    wanted = [0.2 + 0.8 * (1 + np.cos(np.pi * i / 9)) / 2 for i in range(10)]
    np.testing.assert_allclose(factors, wanted, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("rise", ["linear", "exponential"])
def test_the_range_test_rises_evenly_from_its_first_factor_to_the_peak(rise: Any):
    factors = values(optim.range_test(initial=1e-3, rise=rise), 31).astype(float)
    np.testing.assert_allclose(factors[[0, -1]], [1e-3, 1], rtol=1e-6)
    steps = np.diff(factors) if rise == "linear" else factors[1:] / factors[:-1]
    np.testing.assert_allclose(steps, steps.mean(), rtol=1e-4)


def test_one_cycle_peaks_where_its_momentum_is_lowest():
    factors, momenta = values(optim.one_cycle(warmup=0.4), 50), values(optim.one_cycle_momentum(warmup=0.4), 50)
    assert factors.argmax() == momenta.argmin() == 19
    assert factors[19] == 1
    np.testing.assert_allclose(momenta[[0, 19, -1]], [0.95, 0.85, 0.95], rtol=1e-6)
    assert np.all(np.diff(factors[:20]) > 0)
    assert np.all(np.diff(factors[19:]) < 0)


@pytest.mark.parametrize("mode", ["triangular", "triangular2", "exp_range"])
def test_cyclic_momentum_mirrors_the_cycles_of_the_learning_rate(mode: Any):
    shape = {"up": 6.0, "down": 9.0, "mode": mode, "decay": 0.7}
    heights = (values(optim.cyclic(initial=0.2, **shape), 60) - 0.2) / 0.8
    momenta = values(optim.cyclic_momentum(low=0.8, high=0.9, **shape), 60)
    np.testing.assert_allclose(momenta, 0.9 - 0.1 * heights, rtol=1e-6)


@pytest.mark.parametrize("growth", [1.0, 1.5, 2.0, 3.0])
def test_restarts_jump_to_one_after_cycles_that_grow(growth: float):
    factors = values(optim.cosine_restarts(period=8.0, growth=growth), 200)
    jumps, start, length = [], 0.0, 8.0
    while start < 200:
        jumps.append(int(np.ceil(start)))
        start, length = start + length, length * growth
    np.testing.assert_array_equal(np.flatnonzero(np.diff(factors) > 0) + 1, jumps[1:])
    if growth != 1.5:  # whose cycles do not begin with an update
        np.testing.assert_array_equal(factors[jumps], 1)


LONG = 1_000_000
TURNS = [0, 1, 99_998, 99_999, 100_000, 299_999, 699_999, 700_000, 899_999, 999_998]


@pytest.mark.parametrize(
    ("schedule", "exact"),
    [
        (linear(), lambda n: np.minimum(n / 1e5, (LONG - n) / 9e5)),
        (cosine(), lambda n: np.where(n < 1e5, n / 1e5, np.sin(np.pi / 2 * (LONG - n) / 9e5) ** 2)),
        (optim.wsd(warmup=0.1, decay=0.3), lambda n: np.minimum(n / 1e5, 1 - np.sqrt(np.maximum(0, n - 7e5) / 3e5))),
        (optim.cosine_restarts(period=100.0, offset=1.0), lambda n: np.cos(np.pi / 2 * (n % 100) / 100) ** 2),
        (
            optim.cyclic(up=700.0, down=300.0, initial=0.0),
            lambda n: np.minimum((n - 1) % 1e3 / 7e2, (1e3 - (n - 1) % 1e3) / 3e2),
        ),
    ],
    ids=["linear", "cosine", "wsd", "restarts", "cyclic"],
)
def test_a_million_updates_keep_their_digits(schedule: Schedule, exact: Any):
    got = jax.jit(lambda step: schedule(step, LONG))(jnp.asarray(TURNS))
    np.testing.assert_allclose(np.asarray(got, float), exact(np.asarray(TURNS) + 1.0), rtol=2e-6)


@pytest.mark.parametrize("name", REFERENCES)
def test_the_value_depends_on_the_step_alone(name: str):
    make, arguments, _ = REFERENCES[name]
    factor = jax.jit(lambda step: make(**arguments)(step, 100))
    wanted = values(make(**arguments), 100)
    for step in (77, 3, 50):
        np.testing.assert_allclose(factor(jnp.int32(step)), wanted[step], rtol=1e-6)


@pytest.mark.parametrize("make", [linear, cosine, optim.polynomial, optim.wsd, optim.exponential])
@pytest.mark.parametrize(("total", "warmup"), [(1, 0.0), (1, 1.0), (5, 1.0), (3, 0.01)])
def test_extreme_lengths_stay_finite_and_between_zero_and_one(make: Any, total: int, warmup: float):
    factors = values(make(warmup=warmup, final=0.5), total)
    assert np.all(np.isfinite(factors))
    assert np.all((factors > 0) & (factors <= 1))


@pytest.mark.parametrize("total", [1, 2, 3])
@pytest.mark.parametrize(
    "make",
    [
        optim.one_cycle,
        optim.one_cycle_momentum,
        optim.cyclic,
        optim.cyclic_momentum,
        optim.cosine_restarts,
        optim.slanted_triangular,
        optim.range_test,
        optim.inverse_sqrt,
        optim.step_decay,
    ],
)
def test_a_few_updates_stay_finite_and_between_zero_and_one(make: Any, total: int):
    factors = values(make(), total)
    assert np.all(np.isfinite(factors))
    assert np.all((factors > 0) & (factors <= 1))


def test_a_whole_number_of_updates_is_taken_for_one():
    # 0.7 · 100 is below 70 in float32; a square root would make 4e-4 of it.
    factors = values(optim.wsd(warmup=0.0, decay=0.3, offset=0.0), 100)
    assert factors[70] == 1


@pytest.mark.parametrize(
    ("make", "wrong", "message"),
    [
        (optim.wsd, {"shape": "sqrt"}, "shape='sqrt'.*1-sqrt"),
        (optim.cyclic, {"mode": "square"}, "mode='square'.*exp_range"),
        (optim.one_cycle, {"annealing": "cos"}, "annealing='cos'.*cosine"),
        (optim.range_test, {"rise": "log"}, "rise='log'.*exponential"),
    ],
)
def test_an_unknown_shape_is_an_error_that_names_the_choices(make: Any, wrong: dict[str, str], message: str):
    # What a caller sees who does not check annotations.
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(make)(**wrong)
