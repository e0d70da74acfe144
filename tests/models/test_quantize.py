"""A base in few bits: rounded on the host, or in the blocks that a GGUF file has."""

from pathlib import Path
from typing import Any

import gguf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptlab import config, leaf, tree
from adaptlab.adapt import materialize
from adaptlab.leaf import Affine, Quantized
from adaptlab.models import Quantization, pretrained, quantize, quantized, save_hf
from adaptlab.source import local
from tests.models.test_pretrained import SHAPE, TIED, TOKENS, gguf_tensors, weights, write_gguf


def gguf_file(path: Path, kind: str, shape: Any = SHAPE) -> Any:
    tensors = gguf_tensors(shape, weights(shape))
    write_gguf(path, shape, tensors, gguf.GGMLQuantizationType[kind], "llama")
    return pretrained(local(path))


def kinds(params: Any) -> dict[str, type]:
    return {path: type(x) for path, x in tree.flatten(params, leaf.is_node).items()}


def test_the_matrices_of_the_layers_are_quantised_and_nothing_else():
    params = weights(SHAPE)
    got = quantize(params, Quantization("nf4", block=16))
    wanted = {p: Quantized if p.startswith("layers/") and p.endswith("kernel") else np.ndarray for p in kinds(params)}
    assert kinds(got) == wanted
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(got))  # nothing was put on a device


@pytest.mark.parametrize(("scheme", "error"), [("nf4", 0.12), ("fp4", 0.15), ("int8", 0.01), ("dynamic8", 0.02)])
def test_a_quantised_weight_is_near_the_weight(scheme: Any, error: float):
    params = weights(SHAPE)
    got = jax.jit(materialize)(quantize(params, Quantization(scheme, select=".*/(kernel|embedding)", block=16)))
    for path, w in tree.flatten(params).items():
        assert np.linalg.norm(tree.flatten(got)[path] - w) <= error * np.linalg.norm(w), path


def test_tables_have_blocks_along_their_rows():
    params = quantize(weights(TIED), Quantization("int8", select="embed/embedding"))
    assert params["embed"]["embedding"].absmax.shape == (40, 1)


def test_the_defaults_are_those_of_qlora_and_llm_int8():
    assert Quantization("nf4").resolved()[2:] == (64, True)
    assert Quantization("int8").resolved()[2:] == (0, False)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (Quantization("nf4", block=24), "kernel: block=24 does not divide rows of 32"),
        (Quantization("nf4", select="norm/scale"), "selects 'norm/scale' of shape .*narrow `select`"),
        (Quantization("int8", select="layer/.*"), "matches nothing"),
        (Quantization("stored", block=32), "takes the file's own blocks"),
    ],
)
def test_what_cannot_be_quantised_is_an_error(how: Quantization, message: str):
    with pytest.raises(ValueError, match=message):
        quantize(weights(SHAPE), how)


def test_a_quantised_base_says_how_and_has_a_fingerprint_of_its_own(tmp_path: Path):
    save_hf(tmp_path, SHAPE, weights(SHAPE), context=8)
    plain = pretrained(local(tmp_path))
    base, params = quantized(plain, Quantization("nf4", block=16))
    assert base.quantized == {
        **{"scheme": "nf4", "select": "layers/.*/kernel", "block": 16, "double": True},
        "of": plain.fingerprint,
    }
    assert base.fingerprint == tree.digest(params) == tree.digest(base.load())
    other, _ = quantized(plain, Quantization("nf4", block=16, double=False))
    assert len({plain.fingerprint, base.fingerprint, other.fingerprint}) == 3


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0"])
def test_blocks_as_stored_are_the_dequantised_weights_bit_by_bit(kind: str, tmp_path: Path):
    plain = gguf_file(tmp_path / "m.gguf", kind)
    base, params = quantized(plain, Quantization("stored", select=".*/(kernel|embedding)"))
    assert set(kinds(params).values()) == {Affine, np.ndarray}
    assert base.fingerprint == plain.fingerprint
    dense = jax.jit(materialize)(params)
    for path, w in tree.flatten(plain.load()).items():
        np.testing.assert_array_equal(tree.flatten(dense)[path], w, err_msg=path)


def test_blocks_as_stored_give_the_logits_of_the_dequantised_model(tmp_path: Path):
    plain = gguf_file(tmp_path / "m.gguf", "Q4_1", TIED)
    base, params = quantized(plain, Quantization("stored", select=[".*/kernel", "embed/embedding"]))
    got, wanted = (jax.jit(base.model.apply)(p, TOKENS) for p in (params, plain.load()))
    np.testing.assert_allclose(got, wanted, rtol=0, atol=1e-5 * float(jnp.abs(wanted).max()))


def test_files_without_blocks_have_none_to_keep(tmp_path: Path):
    save_hf(tmp_path / "hf", SHAPE, weights(SHAPE), context=8)
    with pytest.raises(ValueError, match=r"not read from a GGUF file.*choose from \['nf4'"):
        quantized(pretrained(local(tmp_path / "hf")), Quantization("stored"))
    with pytest.raises(ValueError, match=r"attn_k\.weight is of ggml type 0; blocks of \['Q4_0', 'Q4_1', 'Q8_0'\]"):
        quantized(gguf_file(tmp_path / "m.gguf", "F32"), Quantization("stored"))


@pytest.mark.real
@pytest.mark.slow
def test_the_blocks_of_smollm2_are_its_dequantised_weights_in_a_fifth_of_the_bytes():
    node = config.compose("base/smollm2", [])["base"]
    plain = config.instantiate(node["model"])
    flat = tree.flatten(plain.load())
    kept = quantized(plain, Quantization("stored", select=[".*/kernel", "embed/embedding"]))[1]
    for path, weight in tree.flatten(kept, leaf.is_node).items():
        np.testing.assert_array_equal(jax.jit(leaf.dense)(weight), flat[path], err_msg=path)
    # 5 bits for a weight of the layers (4 and two scales), 8.5 for one of the embedding
    assert tree.nbytes(kept) < tree.nbytes(flat) / 5
