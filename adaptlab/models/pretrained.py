"""Pretrained models from files: GGUF, and Hugging Face folders of safetensors. Nothing is ever unpickled."""

import hashlib
import json
import logging
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import jax
import numpy as np

from adaptlab import hosts, tree
from adaptlab.config import GIVEN
from adaptlab.gguf import TensorInfo, load_gguf_header
from adaptlab.models.bert_family import BERT
from adaptlab.models.family import Family
from adaptlab.models.gguf_blocks import deinterleave, raw_rows, stored_weight
from adaptlab.models.gpt2_family import GPT2
from adaptlab.models.llama_family import LLAMA
from adaptlab.models.mixtral_family import MIXTRAL
from adaptlab.models.model import Model, Pretrained
from adaptlab.models.weights import Entry, Index, assemble, disassemble
from adaptlab.rng import key_for
from adaptlab.source import Source

__all__ = ["FAMILIES", "from_shape", "pretrained", "save_hf"]

log = logging.getLogger(__name__)

FAMILIES = {family.name: family for family in (BERT, GPT2, LLAMA, MIXTRAL)}
"""By the `model_type` of config.json."""

_HEAD = "classifier/"


class _Opened(NamedTuple):
    """A file's model: `load(shapes)` reads the weights of these `{path: shape}`, `stored(path)` blocks as they are."""

    family: Family
    shape: Any
    context: int
    load: Callable[[dict[str, tuple[int, ...]]], Any]
    stored: Callable[[str], Any] | None = None


def pretrained(
    source: Source,
    *,
    name: str | None = None,
    dtype: str = "float32",
    remat: str = "none",
    unroll: int | None = None,
    attention: str = "auto",
    pooling: Literal["cls", "mean"] | None = None,
    classes: Annotated[int | None, GIVEN] = None,
    head_seed: int = 0,
    capacity_factor: float | None = None,
) -> Pretrained:
    """Return the model that a file describes; its weights are read when `load` is called.

    Args:
      source: a `.gguf` file, or a folder with `config.json` and `*.safetensors`.
      name: what to call it; by default the source's name.
      dtype: compute dtype, see `llama`.
      remat: what the backward pass recomputes, see `llama`.
      unroll: layers per scan iteration, see `llama`.
      attention: all scores at once or in blocks, see `llama`.
      pooling: how an encoder makes one vector of a text, see `bert`.
      classes: give an encoder a linear head over so many classes: the file's own if it has one of that size, or else
        a new one.
      head_seed: the seed of a new head. It belongs to the base, so that every method and every run starts from it.
      capacity_factor: of a mixture of experts, see `mixtral`.

    Raises:
      ValueError: neither format, an architecture that adaptlab does not have, a head or pooling for a decoder, or a
        capacity for a model without experts.
    """
    path = Path(source.fetch())
    opened = _open_gguf(path) if path.suffix == ".gguf" else _open_hf(path)
    options = {"dtype": dtype, "remat": remat, "unroll": unroll, "attention": attention}
    options |= _routing(opened.family, capacity_factor)
    model = _model(opened, pooling, classes, path, **options)

    def parts() -> Any:
        expected = jax.eval_shape(model.init, jax.random.key(0))
        params = opened.load({p: x.shape for p, x in tree.flatten(expected).items()})
        if classes is None or "classifier" in params:
            return params
        log.info("%s: a new head over %d classes, drawn with seed %d", path.name, classes, head_seed)
        head = jax.jit(lambda key: model.init(key)["classifier"])(key_for(head_seed, "head"))
        return params | {"classifier": jax.tree.map(np.asarray, head)}

    fingerprint = source.sha256 or hosts.agreed(lambda: _fingerprint(path))  # one host reads all, not every one
    return Pretrained(
        name=name or source.name,
        model=model,
        load=lambda: jax.tree.map(np.asarray, parts()),
        fingerprint=fingerprint,
        context=opened.context,
        stored=opened.stored,
        parts=parts,
    )


def _model(opened: _Opened, pooling: str | None, classes: int | None, path: Path, **options: Any) -> Model:
    family = opened.family
    if family.classifier is None and (pooling or classes):
        raise ValueError(f"{path} is a {family.name!r} decoder: it has no pooling={pooling!r}, classes={classes}.")
    if family.classifier and classes:
        return family.classifier(opened.shape, classes=classes, pooling=pooling or "cls", **options)
    return family.model(opened.shape, **({"pooling": pooling} if family.classifier else {}), **options)


def from_shape(shape: Any, *, capacity_factor: float | None = None, **options: Any) -> Model:
    """Return the model of a shape, whose class says which family it is.

    Args:
      shape: the sizes, e.g. a `LlamaShape` or a `MixtralShape`.
      capacity_factor: of a mixture of experts, see `mixtral`.
      options: what all families take, see `llama`.

    Raises:
      ValueError: a capacity for a model without experts.
    """
    family = _family_of(shape)
    return family.model(shape, **options, **_routing(family, capacity_factor))


def _routing(family: Family, capacity_factor: float | None) -> dict[str, float]:
    if capacity_factor is not None and not family.routed:
        raise ValueError(f"capacity_factor={capacity_factor}: a {family.name!r} has no experts; leave it None.")
    return {} if capacity_factor is None else {"capacity_factor": capacity_factor}


def _family_of(shape: Any) -> Family:
    return next(family for family in FAMILIES.values() if isinstance(shape, family.shape))


def save_hf(folder: str | Path, shape: Any, params: Any, context: int) -> None:
    """Write plain (merged) weights as a folder that transformers' `from_pretrained` reads.

    Args:
      folder: where to; it is made.
      shape: the sizes, whose class says which family it is.
      params: the weights, with or without a head.
      context: the longest sequence; of a model that has learned its positions, as many as it has.

    Raises:
      ValueError: weights that no checkpoint of the family has, or another context than the learned one.
    """
    from safetensors.numpy import save_file

    family = _family_of(shape)
    if getattr(shape, "context", context) != context:
        raise ValueError(f"context={context}, but the model has learned {shape.context} positions: save it with those.")
    config, prefix = family.write(shape, context, {p: np.shape(x) for p, x in tree.flatten(params).items()})
    heads = {entry.hf for entry in family.entries(shape) if entry.path.startswith(_HEAD)}
    tensors = disassemble(family.entries(shape), params)
    tensors = {name if name in heads else prefix + name: x for name, x in tensors.items()}
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    config = {"model_type": family.name, **config, "torch_dtype": "float32"}
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def _family(name: str, families: Mapping[str, Family], where: Path) -> Family:
    if name not in families:
        raise ValueError(f"{where} is a {name!r} model; adaptlab reads {', '.join(map(repr, sorted(families)))}.")
    return families[name]


def _weight_files(path: Path) -> list[Path]:
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no *.safetensors file (pickled weights are never read).")
    return files


def _fingerprint(path: Path) -> str:
    sha = hashlib.sha256()
    for file in _weight_files(path):
        with file.open("rb") as stream:
            while block := stream.read(1 << 22):
                sha.update(block)
    return sha.hexdigest()


# GGUF ------------------------------------------------------------------------------------------------------------


def _open_gguf(path: Path) -> _Opened:
    metadata, tensors = load_gguf_header(path)

    def header(key: str, default: Any = None) -> Any:
        value = metadata.get(key, default)
        if value is None:
            raise ValueError(f"{path} has no {key!r} in its header.")
        return value

    readable = {name: family for name, family in FAMILIES.items() if family.read_gguf}
    family = _family(header("general.architecture"), readable, path)
    assert family.read_gguf is not None
    found = {name: tensor.shape for name, tensor in tensors.items()}
    shape = family.read_gguf(header, found)

    def load(shapes: dict[str, tuple[int, ...]]) -> Any:
        data = np.memmap(path, np.uint8, "r")

        def read(name: str, entry: Entry, index: Index) -> np.ndarray:
            array = _dequantise(data, tensors[name])
            return (deinterleave(array, entry.rotary_heads) if entry.rotary_heads else array)[index]

        return assemble(family.entries(shape), lambda e: e.gguf, shapes, found, read, str(path))

    def stored(path_: str) -> Any:
        entry = next(entry for entry in family.entries(shape) if entry.path == path_)
        names = [entry.gguf.format(i) for i in range(header(f"{family.name}.block_count"))]
        return stored_weight(np.memmap(path, np.uint8, "r"), tensors, entry, list(dict.fromkeys(names)))

    return _Opened(family, shape, header(f"{family.name}.context_length"), load, stored)


def _dequantise(data: np.ndarray, tensor: TensorInfo) -> np.ndarray:
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    kind = GGMLQuantizationType(tensor.type)
    return dequantize(raw_rows(data, tensor, *GGML_QUANT_SIZES[kind]), kind)


# Hugging Face ----------------------------------------------------------------------------------------------------


def _open_hf(path: Path) -> _Opened:
    from safetensors import safe_open

    config_path = path / "config.json"
    if not config_path.is_file():
        raise ValueError(f"{path} is neither a .gguf file nor a folder with config.json and *.safetensors.")
    config = json.loads(config_path.read_text())
    family = _family(config.get("model_type", "unknown"), FAMILIES, config_path)
    shape = family.read(config, config_path)

    def load(shapes: dict[str, tuple[int, ...]]) -> Any:
        files = [safe_open(file, framework="np") for file in _weight_files(path)]
        home = {name.removeprefix(family.prefix): (file, name) for file in files for name in file.keys()}  # noqa: SIM118
        found = {name: tuple(file.get_slice(full).get_shape()) for name, (file, full) in home.items()}
        entries = [e for e in family.entries(shape) if e.path in shapes and not _is_new(e, shapes, found)]
        wanted = {entry.hf for entry in entries if "{}" not in entry.hf}
        found = {name: s for name, s in found.items() if name in wanted or not re.fullmatch(family.unread, name)}

        def read(name: str, _: Entry, index: Index) -> np.ndarray:
            file, full = home[name]
            return file.get_slice(full)[index].astype(np.float32)

        return assemble(entries, lambda e: e.hf, shapes, found, read, str(path))

    return _Opened(family, shape, family.context(config), load)


def _is_new(entry: Entry, shapes: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether this is part of a head that the checkpoint does not have, or has for another number of classes."""
    return entry.path.startswith(_HEAD) and found.get(entry.hf) != shapes[entry.path][::-1]
