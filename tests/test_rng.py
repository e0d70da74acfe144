import jax
import numpy as np
import pytest

from adaptlab.rng import generator_for, key_for, stream_id


def bits(key: jax.Array) -> tuple[int, ...]:
    return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_keys_differ_by_seed_stream_and_step_and_never_otherwise():
    keys = [bits(key_for(seed, stream, step)) for seed in (0, 1) for stream in ("init", "dropout") for step in (0, 1)]
    assert len(set(keys)) == 8
    assert bits(key_for(1, "dropout", 1)) == keys[-1]


def test_a_streams_number_is_fixed_for_ever():
    assert stream_id("init") == 0x8A0654BB  # the first bytes of SHA-256("init"), little-endian


def test_seed_and_step_may_be_traced():
    traced = jax.jit(lambda seed, step: jax.random.key_data(key_for(seed, "init", step)))
    assert tuple(np.asarray(traced(np.uint32(3), np.int32(7))).tolist()) == bits(key_for(3, "init", 7))
    assert traced(np.uint32(4), np.int32(8)) is not None
    assert traced._cache_size() == 1


@pytest.mark.parametrize("other", [(1, "data", 0), (0, "other", 0), (0, "data", 1)])
def test_generators_differ_by_seed_stream_and_step(other: tuple[int, str, int]):
    draw = generator_for(0, "data").random(4)
    np.testing.assert_array_equal(draw, generator_for(0, "data", 0).random(4))
    assert not np.array_equal(draw, generator_for(*other).random(4))
