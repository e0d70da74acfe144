"""Pytrees as vectors with names: paths, selection, arithmetic and digests.

A path joins a leaf's keys with "/", e.g. `"layers/attention/query/kernel"`.
"""

import functools
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "combine",
    "count",
    "digest",
    "dot",
    "flatten",
    "map_with_path",
    "nbytes",
    "norm",
    "partition",
    "select",
    "unflatten",
]

PyTree = Any


def _path(keys: Iterable[Any]) -> str:
    return jax.tree_util.keystr(tuple(keys), simple=True, separator="/")


def flatten(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> dict[str, Any]:
    """Return `{path: leaf}`, in tree order."""
    return {_path(keys): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf)}


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return the nested dict whose `flatten` is `flat`."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *parents, name = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = leaf
    return tree


def map_with_path(f: Callable[..., Any], tree: PyTree, *rest: PyTree, is_leaf: Any = None) -> PyTree:
    """Return the tree of `f(path, leaf, *leaves_of_rest)`."""
    return jax.tree_util.tree_map_with_path(lambda k, *x: f(_path(k), *x), tree, *rest, is_leaf=is_leaf)


def select(paths: Iterable[str], patterns: str | Iterable[str]) -> dict[str, int | None]:
    """Say which pattern claims which path: the index of the first that matches the whole path, or None.

    Args:
      paths: the `/`-joined paths on offer.
      patterns: one or more regular expressions, tried in order.

    Raises:
      ValueError: a pattern is malformed or matches no path at all, with the paths on offer. (A pattern
        that only matches what earlier ones took is an error too: it would quietly select nothing.)
    """
    paths = list(paths)
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    try:
        compiled = [re.compile(p) for p in patterns]
    except re.error as error:
        raise ValueError(f"Selector {error.pattern!r} is not a regular expression: {error}.") from error
    owner = {path: next((i for i, p in enumerate(compiled) if p.fullmatch(path)), None) for path in paths}
    for i, pattern in enumerate(patterns):
        if i not in owner.values():
            matched = [p for p in paths if compiled[i].fullmatch(p)]
            reason = f"only matches {matched}, which earlier patterns took" if matched else "matches nothing"
            raise ValueError(
                f"Selector {pattern!r} {reason}. It is matched against the whole path (use '.*' for any "
                f"part). Paths on offer:\n  " + "\n  ".join(paths)
            )
    return owner


def partition(tree: PyTree, keep: Callable[[str, Any], bool]) -> tuple[PyTree, PyTree]:
    """Split a tree in two of the same structure: kept leaves and the rest, with None where a leaf is not."""
    kept = map_with_path(lambda path, x: x if keep(path, x) else None, tree)
    rest = map_with_path(lambda path, x: None if keep(path, x) else x, tree)
    return kept, rest


def combine(*trees: PyTree) -> PyTree:
    """Undo `partition`: at each place, the first leaf that is not None."""
    return jax.tree.map(
        lambda *leaves: next((x for x in leaves if x is not None), None), *trees, is_leaf=lambda x: x is None
    )


def dot(a: PyTree, b: PyTree) -> jax.Array:
    """The Euclidean inner product of two trees, accumulated in float32 (or wider)."""

    def product(x: jax.Array, y: jax.Array) -> jax.Array:
        wide = jnp.float64 if x.dtype == jnp.float64 else jnp.float32
        # No vdot: it makes vectors of its arguments first, for which a mesh would gather those that are spread out.
        every = tuple(range(x.ndim))
        form, highest = ((every, every), ((), ())), jax.lax.Precision.HIGHEST
        return jax.lax.dot_general(x, y, form, precision=highest, preferred_element_type=wide)

    products = jax.tree.leaves(jax.tree.map(product, a, b))
    return functools.reduce(jnp.add, products) if products else jnp.zeros(())


def norm(tree: PyTree) -> jax.Array:
    """The Euclidean norm of a tree."""
    return jnp.sqrt(dot(tree, tree))


def count(tree: PyTree) -> int:
    """The number of elements."""
    return sum(int(np.prod(x.shape)) for x in jax.tree.leaves(tree))


def nbytes(tree: PyTree) -> int:
    """The number of bytes its leaves take."""
    return sum(int(np.prod(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def digest(tree: PyTree) -> str:
    """SHA-256 over paths, dtypes, shapes and bytes: equal if and only if the trees are equal bit by bit."""
    sha = hashlib.sha256()
    for path, leaf in sorted(flatten(tree).items()):
        array = np.ascontiguousarray(leaf)
        sha.update(f"{path}:{array.dtype.name}:{array.shape};".encode())
        sha.update(array.view(np.uint8).data if array.size else b"")
    return sha.hexdigest()
