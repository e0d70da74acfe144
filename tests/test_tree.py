import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import tree

TREE = {"a": {"x": jnp.arange(6.0).reshape(2, 3), "y": jnp.ones(2)}, "b": jnp.full((4,), 2.0)}


def test_paths_join_keys_with_slashes_and_unflatten_undoes_flatten():
    flat = tree.flatten(TREE)
    assert list(flat) == ["a/x", "a/y", "b"]
    assert jax.tree.structure(tree.unflatten(flat)) == jax.tree.structure(TREE)


def test_map_with_path_gives_each_leaf_its_path():
    assert tree.flatten(tree.map_with_path(lambda path, x: (path, x.ndim), TREE), lambda x: isinstance(x, tuple)) == {
        "a/x": ("a/x", 2),
        "a/y": ("a/y", 1),
        "b": ("b", 1),
    }


@pytest.mark.parametrize("pattern", [".*", ["a/.*", "b"]])
def test_the_first_pattern_that_matches_the_whole_path_owns_it(pattern: str | list[str]):
    owner = tree.select(["a/x", "a/y", "b"], pattern)
    assert owner == ({"a/x": 0, "a/y": 0, "b": 0} if pattern == ".*" else {"a/x": 0, "a/y": 0, "b": 1})


def test_a_part_of_a_path_is_no_match():
    assert tree.select(["body/kernel", "kernel"], "kernel") == {"body/kernel": None, "kernel": 0}


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (["a/z"], r"Selector 'a/z' matches nothing.*whole path.*\n.*a/x"),
        (["a/.*", "a/x"], r"Selector 'a/x' only matches \['a/x'\], which earlier patterns took"),
        (["a/("], r"'a/\(' is not a regular expression"),
    ],
)
def test_a_selector_that_selects_nothing_is_an_error(patterns: list[str], message: str):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        tree.select(["a/x", "b"], patterns)


def test_combine_undoes_partition():
    kept, rest = tree.partition(TREE, lambda path, x: path.startswith("a/"))
    assert list(tree.flatten(kept)) == ["a/x", "a/y"]
    assert list(tree.flatten(rest)) == ["b"]
    assert tree.digest(tree.combine(kept, rest)) == tree.digest(TREE)


def test_dot_norm_and_count_are_those_of_the_joined_vector():
    vector = np.concatenate([np.ravel(x) for x in jax.tree.leaves(TREE)])
    np.testing.assert_allclose(tree.dot(TREE, TREE), vector @ vector, rtol=1e-6)
    np.testing.assert_allclose(tree.norm(TREE), np.linalg.norm(vector), rtol=1e-6)
    assert tree.count(TREE) == vector.size
    assert tree.nbytes(TREE) == 4 * vector.size


def test_dot_adds_up_half_precision_in_float32():
    ones = {"x": jnp.ones(5000, jnp.bfloat16)}
    assert tree.dot(ones, ones).dtype == jnp.float32
    assert tree.dot(ones, ones) == 5000


def test_the_digest_hears_every_bit_the_path_the_shape_and_the_type():
    x = np.array([[1.0, 2.0]], np.float32)
    others = [
        {"p": np.nextafter(x, 9, dtype=np.float32)},
        {"q": x},
        {"p": x.T},
        {"p": x.view(np.int32)},
        {"p": x, "q": x},
    ]
    digests = [tree.digest(t) for t in ({"p": x}, *others)]
    assert len(set(digests)) == len(digests)
    assert tree.digest({"p": jnp.asarray(x)}) == digests[0]
    assert tree.digest({}) == tree.digest({})
