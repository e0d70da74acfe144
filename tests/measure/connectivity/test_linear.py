import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import tree
from adaptlab.adapt import full, lora, prefix
from adaptlab.measure.connectivity import barrier, connect, dense_models
from adaptlab.measure.landscape import Surface, make_landscape, mean_loss
from adaptlab.stats import Mean
from tests.laws.table import MODELS, scattered

ROW = MODELS["llama_tied"]


def path(t, values):
    return Surface((np.asarray(t),), {"a/loss": np.asarray(values)}, ("t",), {}, len(t))


def test_a_barrier_is_the_highest_rise_above_the_line_between_the_ends():
    got = barrier(path([0, 0.25, 0.5, 0.75, 1], [1.0, 2.0, 4.0, 2.5, 3.0]), "a/loss")
    assert got == (2.0, 0.5, 1.0, 3.0, "line", 2.0)


def test_against_the_mean_of_the_ends_a_slope_counts_half_its_height():
    slope = path([0, 0.5, 1], [1.0, 2.0, 3.0])
    assert barrier(slope, "a/loss", "mean") == (1.0, 1.0, 1.0, 3.0, "mean", 1.0)
    assert barrier(slope, "a/loss").height == 0.0


def test_a_convex_path_has_no_barrier_and_what_lies_outside_of_it_does_not_count():
    got = barrier(path([-1, 0, 0.5, 1, 2], [9.0, 1.0, 0.5, 1.0, 9.0]), "a/loss")
    assert got.height == 0.0


@pytest.mark.parametrize("points", [5, 7, 101])
def test_the_rise_of_a_path_that_sags_is_its_highest_point_in_the_middle_half_whatever_the_grid(points):
    t = np.linspace(0, 1, points)
    sags = barrier(path(t, 1 + 2 * t - 4 * t * (1 - t)), "a/loss")
    assert sags.height == 0.0
    assert sags.rise == pytest.approx(-0.75 if points != 7 else -8 / 9)  # t = 1/4, and the seven's 1/3
    hill = barrier(path(t, 1 + 2 * t - 4 * t * (1 - t) * (1 - 8 * t)), "a/loss")
    assert hill.rise == hill.height > 0


def test_a_barrier_outside_the_middle_half_is_the_rise():
    assert barrier(path([0, 0.1, 0.5, 1], [1.0, 1.2, 0.5, 1.0]), "a/loss").rise == pytest.approx(0.2)
    assert np.isnan(barrier(path([0, 0.1, 1], [1.0, 0.5, 1.0]), "a/loss").rise)


def test_a_path_through_infinite_loss_is_an_infinite_barrier():
    assert barrier(path([0, 0.5, 1], [1.0, np.nan, 1.0]), "a/loss")[::5] == (np.inf, np.inf)


def test_equal_models_have_no_barrier_at_all():
    landscape = make_landscape(mean_loss(lambda p, b: Mean(jnp.vdot(p["x"] ** 3, b), 1.0)), {"a": [jnp.arange(3.0)]})
    theta = {"x": jnp.asarray([0.1, 0.7, 1.3])}
    for definition in ("line", "mean"):
        assert barrier(connect(landscape, theta, theta, points=5), "a/loss", definition).height == 0.0


def test_two_minima_of_a_double_well_have_the_barrier_between_them():
    landscape = make_landscape(mean_loss(lambda p, b: Mean(jnp.sum((p["x"] ** 2 - 1) ** 2), b)), {"a": [jnp.ones(())]})
    got = connect(landscape, {"x": -jnp.ones(2)}, {"x": jnp.ones(2)}, names=("left", "right"), points=5)
    assert barrier(got, "a/loss").height == pytest.approx(2.0, abs=1e-6)
    assert "left" in got.labels[0]
    assert got.marks.keys() == {"left", "right"}


def test_models_of_different_methods_meet_in_the_space_of_dense_weights():
    shapes = jax.eval_shape(ROW.model.init, jax.random.key(0))
    base = scattered(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes), 0)
    low_rank = lora(2, select=ROW.matrices)
    bound = low_rank.bind(base, scattered(low_rank.init(jax.random.key(0), base), 1))
    found = dense_models(base, {"lora": bound, "full": full().bind(base, scattered(base, 2))})
    assert list(found) == ["base", "lora", "full"]
    path = "layers/attention/query/kernel"
    node = bound["layers"]["attention"]["query"]["kernel"]
    wanted = base["layers"]["attention"]["query"]["kernel"] + node.scale[:, None, None] * (node.a @ node.b)
    np.testing.assert_allclose(tree.flatten(found["lora"])[path], wanted, rtol=1e-5, atol=1e-6)
    assert tree.flatten(found["full"]).keys() == tree.flatten(base).keys()


def test_a_model_that_computes_more_than_the_base_is_no_point_of_its_space():
    shapes = jax.eval_shape(ROW.model.init, jax.random.key(0))
    base = scattered(jax.tree.map(lambda x: jnp.zeros(x.shape), shapes), 0)
    method = prefix(3, slots=ROW.model.slots())
    bound = method.bind(base, method.init(jax.random.key(0), base))
    with pytest.raises(ValueError, match=r"tuned computes with \['layers/attention/prefix'\]"):
        dense_models(base, {"tuned": bound})


def test_what_is_no_path_is_an_error():
    with pytest.raises(ValueError, match=r"'b/loss' was not measured; choose from \['a/loss'\]"):
        barrier(path([0, 1], [1, 1]), "b/loss")
    with pytest.raises(ValueError, match="ticks at 0 and 1"):
        barrier(path([0, 0.9], [1, 1]), "a/loss")
    with pytest.raises((ValueError, TypeError), match="max"):
        barrier(path([0, 1], [1, 1]), "a/loss", "max")  # pyright: ignore
    with pytest.raises(ValueError, match="points=2"):
        connect(lambda *a: {}, {}, {}, points=2)
