import pytest

from adaptlab.train import duration

SIZES = {"batch_size": 4, "length": 128, "rows": 10}


@pytest.mark.parametrize(
    ("amount", "steps"),
    [
        ({"steps": 7}, 7),
        ({"examples": 28}, 7),
        ({"examples": 29}, 8),
        ({"tokens": 7 * 512}, 7),
        ({"tokens": 7 * 512 + 1}, 8),
        ({"epochs": 2}, 5),
        ({"epochs": 2.1}, 6),
        ({"epochs": 0.01}, 1),
    ],
    ids=str,
)
def test_every_unit_becomes_the_steps_that_cover_it(amount: dict[str, float], steps: int):
    assert duration(**amount).in_steps(**SIZES) == steps


@pytest.mark.parametrize("amounts", [{}, {"steps": 3, "tokens": 5}], ids=str)
def test_none_or_several_units_are_an_error(amounts: dict[str, float]):
    with pytest.raises(ValueError, match="exactly one of steps, examples, tokens and epochs"):
        duration(**amounts)


@pytest.mark.parametrize("amount", [0, -1])
def test_no_training_is_an_error(amount: float):
    with pytest.raises(ValueError, match="is not positive"):
        duration(steps=amount)
