"""A stacked tree in parameter groups, and what the tests of groups do with it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from adaptlab import tree
from adaptlab.models import LlamaShape, llama
from adaptlab.optim.groups import Groups, add_decayed_weights, bias_corrected, mask_frozen, scale_by_group

L, STEPS, LR = 3, 9, 0.01
SHAPES = {
    "embed": {"embedding": (5, 2)},
    "layers": {"ffn": {"kernel": (L, 4, 5)}, "ffn_norm": {"scale": (L, 2)}},
    "norm": {"scale": (2,)},
}


def random_tree(shapes: Any, seed: int) -> Any:
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: jnp.asarray(rng.normal(size=s), jnp.float32), shapes, is_leaf=lambda s: isinstance(s, tuple)
    )


MODEL = llama(LlamaShape(11, 8, 3, 2, 1, 4, 12, tied=False))
PARAMS = random_tree(SHAPES, 0)
GRADS = [random_tree(SHAPES, 1 + t) for t in range(STEPS)]


def chain(core: Any, groups: Groups | None, *, clip: Any = None, decay: Any = 0.1, lr: Any = LR) -> Any:
    """What an optimiser of the house is made of, in its order."""
    inner = optax.chain(
        mask_frozen(groups, STEPS),
        optax.identity() if clip is None else optax.clip_by_global_norm(clip),
        bias_corrected(core, groups, STEPS),
        add_decayed_weights(decay, groups),
        optax.scale(-lr),
        scale_by_group(groups, STEPS),
    )

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        with jax.numpy_dtype_promotion("standard"):
            return inner.update(updates, state, params)

    return optax.GradientTransformation(inner.init, update)


def run(optimizer: Any, params: Any = PARAMS, grads: Any = tuple(GRADS)) -> list[dict[str, np.ndarray]]:
    """The parameters before the first and after each update, by path."""

    @jax.jit
    def step(params: Any, state: Any, grad: Any) -> Any:
        updates, state = optimizer.update(grad, state, params)
        return optax.apply_updates(params, updates), state

    state, seen = optimizer.init(params), [params]
    for grad in grads:
        params, state = step(params, state, grad)
        seen.append(params)
    return [{path: np.asarray(x) for path, x in tree.flatten(p).items()} for p in seen]


def pieces(seen: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """`{piece: [STEPS + 1, elements]}`; a stacked leaf gives a piece per layer."""
    named = {path: np.stack([one[path] for one in seen]) for path in seen[0]}
    stacked = {p: x for p, x in named.items() if p.startswith("layers/")}
    cut = {f"{p}[{i}]": x[:, i] for p, x in stacked.items() for i in range(x.shape[1])}
    return {p: x.reshape(len(x), -1) for p, x in ({p: x for p, x in named.items() if p not in stacked} | cut).items()}


def layer_of(piece: str) -> int:
    if piece.startswith("layers/"):
        return int(piece[-2])
    return -1 if piece.startswith("embed") else L


AT_ONCE = dict.fromkeys(range(-1, L + 1), 0.0)
ALIKE = dict.fromkeys(range(-1, L + 1), 1.0)
UNFREEZING = {L: 0.0, 2: 0.0, 1: 2.0, 0: 4.0, -1: 7.0}  # 4 groups over 9 updates: round(0, 2.25, 4.5, 6.75)
DISCRIMINATIVE = {L: 1.0, 2: 1.0, 1: 1 / 2.6, 0: 1 / 2.6**2, -1: 1 / 2.6**3}
ADAM = {"b1": 0.8, "b2": 0.95, "eps": 1e-6}


def values(resolved: Any) -> dict[str, list[float]]:
    return {path: np.ravel(x).tolist() for path, x in tree.flatten(jax.device_get(resolved)).items()}
