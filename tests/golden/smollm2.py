"""The real base, and what it says of a text: by adaptlab, and by transformers on the same weights."""

import functools
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import config
from adaptlab.data import Tokenizer
from adaptlab.models import LlamaShape, Pretrained, save_hf

HOME = Path(__file__).parent
SHORT, LONG = HOME / "smollm2_short.npz", HOME / "smollm2_long.npz"
SHAPE = LlamaShape(
    vocab_size=49152,
    width=576,
    depth=30,
    heads=9,
    kv_heads=3,
    head_width=64,
    ffn_width=1536,
    rope_base=100_000.0,
    norm_eps=1e-5,
    tied=True,
)
CONTEXT = 8192
LOGITS, LOSS = 2e-3, 1e-4
"""How far a logit, and the mean loss per token in nats, may be from the reference."""
COLUMNS = slice(0, None, 2048)
"""The logits that are stored at every position of a long text; at its last position, one text has all of them."""


@functools.cache
def base() -> tuple[Pretrained, Any, Tokenizer]:
    """Return the default base, its weights on the device, and its tokenizer."""
    node = config.compose("forgetting")["base"]
    pretrained = config.instantiate(node["model"])
    return pretrained, jax.tree.map(jnp.asarray, pretrained.load()), config.instantiate(node["tokenizer"])


def texts() -> dict[str, str]:
    return {path.stem: path.read_text() for path in sorted((HOME / "texts").glob("*.txt"))}


@functools.cache
def _apply() -> Any:
    return jax.jit(base()[0].model.apply)


def our_logits(ids: np.ndarray) -> np.ndarray:
    """Return `[T, V]`."""
    return np.asarray(_apply()(base()[1], jnp.asarray(ids[None], jnp.int32))[0])


def their_logits(all_ids: list[np.ndarray], folder: Path) -> list[np.ndarray]:
    """Return transformers' `[T, V]` for each text, on the weights that adaptlab reads, exported to `folder`.

    Raises:
      RuntimeError: the `reference` extra is not installed; says how to install it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # theirs
            import torch
            from transformers import LlamaForCausalLM
    except ImportError as error:
        raise RuntimeError(
            f"The live comparison needs PyTorch and transformers ({error}). Install them with "
            "`scripts/test --reference`, or with `pip install torch==2.13.0` and then `pip install -e '.[reference]'`."
        ) from error
    save_hf(folder, SHAPE, jax.device_get(base()[1]), CONTEXT)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        return [model(torch.from_numpy(ids[None].astype(np.int64))).logits[0].numpy() for ids in all_ids]


def log_probabilities(logits: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return ln p(token t+1 | tokens up to t), `[T-1]`, in float64."""
    wide = logits[:-1].astype(np.float64)
    peak = wide.max(-1, keepdims=True)
    log_sum = peak[:, 0] + np.log(np.exp(wide - peak).sum(-1))
    return np.take_along_axis(wide, ids[1:, None].astype(np.int64), -1)[:, 0] - log_sum
