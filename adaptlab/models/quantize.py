"""A base in few bits, below adaptations that leave it as it is (QLoRA, arXiv:2305.14314)."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from adaptlab import leaf, tree
from adaptlab.models.model import Pretrained
from adaptlab.shard import Stored

__all__ = ["Quantization", "quantize", "quantized"]


class Quantization(NamedTuple):
    """How a base is rounded.

    Attributes:
      scheme: "nf4" or "fp4", 4 bits and a scale per block; "int8", the linear code, or "dynamic8", the dynamic one, in
        8 bits; or "stored", the blocks that the file itself has: no second rounding (GGUF files of Q4_0, Q4_1, Q8_0).
      select: patterns of the paths to quantise; by default the matrices of the layers, as QLoRA does: neither
        embeddings nor norms nor head. (Blocks of tables named `embedding` run along their rows.)
      block: weights per scale; 0 gives each output (or table row) one. None is 64 (QLoRA), and 0 for int8
        (LLM.int8's row-wise weights, arXiv:2208.07339).
      double: round the scales too, to 8 bits; None does for nf4 and fp4.
    """

    scheme: Literal["nf4", "fp4", "int8", "dynamic8", "stored"]
    select: str | Sequence[str] = "layers/.*/kernel"
    block: int | None = None
    double: bool | None = None

    def resolved(self) -> "Quantization":
        """The same with its defaults filled in.

        Raises:
          ValueError: a block or double quantisation for blocks that the file has made.
        """
        if self.scheme == "stored":
            if self.block is not None or self.double is not None:
                raise ValueError(
                    f"block={self.block}, double={self.double}: scheme='stored' takes the file's own blocks; leave "
                    f"both out, or choose one of ['nf4', 'fp4', 'int8', 'dynamic8']."
                )
            return self
        block = (0 if self.scheme == "int8" else 64) if self.block is None else self.block
        return self._replace(block=block, double=self.scheme.endswith("4") if self.double is None else self.double)


def quantize(params: Any, how: Quantization) -> Any:
    """Round the chosen weights of a plain model; the others stay what they are.

    Args:
      params: nested dict of arrays. Those of NumPy stay on the host and are rounded layer by layer, those in files
        (`adaptlab.shard.Stored`) as they are read.
      how: not "stored".

    Raises:
      ValueError: a pattern that matches nothing, a leaf that is no matrix, or a block that does not divide its rows.
    """
    how, flat = how.resolved(), tree.flatten(params)
    for path in _chosen(flat, how.select):
        try:
            flat[path] = _rounded(flat[path], how, transposed=not path.endswith("embedding"))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    return tree.unflatten(flat)


def _rounded(w: Any, how: Quantization, transposed: bool) -> Any:
    if isinstance(w, Stored) and w.ndim > 2:  # layer by layer, so that no more than one is there as it was
        layers = [_rounded(w[i], how, transposed) for i in range(w.shape[0])]
        return jax.tree.map(lambda *x: np.stack(x), *layers)
    w = np.asarray(w) if isinstance(w, Stored) else w
    return leaf.quantize(w, how.scheme, block=how.block or None, double=bool(how.double), transposed=transposed)


def quantized(base: Pretrained, how: Quantization) -> tuple[Pretrained, Any]:
    """Return the base as a quantised one, and its weights, on the host.

    Its fingerprint is that of the rounded weights, so that a delta is never bound to another rounding; blocks as stored
    are the same weights, and keep it.

    Raises:
      ValueError: "stored" for a file without blocks, or arguments that contradict each other.
    """
    how = how.resolved()
    said = {name: value for name, value in how._asdict().items() if value is not None} | {"of": base.fingerprint}
    if how.scheme != "stored":
        params = quantize((base.parts or base.load)(), how)
        load = lambda: quantize(base.load(), how)  # noqa: E731 (read again, not kept)
        return base._replace(load=load, fingerprint=tree.digest(params), quantized=said, parts=None), params
    read = base.stored
    if read is None:
        raise ValueError(
            f"quantize='stored': {base.name} is not read from a GGUF file, so it has no blocks of its own; choose from "
            f"['nf4', 'fp4', 'int8', 'dynamic8']."
        )

    def load_stored() -> Any:
        flat = tree.flatten((base.parts or base.load)())
        chosen = {path: read(path) for path in _chosen(flat, how.select)}
        return tree.unflatten({path: chosen[path] if path in chosen else np.asarray(x) for path, x in flat.items()})

    return base._replace(load=load_stored, quantized=said, parts=None), load_stored()


def _chosen(flat: dict[str, Any], select: str | Sequence[str]) -> list[str]:
    chosen = [path for path, i in tree.select(flat, select).items() if i is not None]
    for path in chosen:
        if np.ndim(flat[path]) < 2 or path.endswith(("/scale", "/bias")):
            raise ValueError(f"quantize selects {path!r} of shape {np.shape(flat[path])}, no matrix; narrow `select`.")
    return chosen
