from pathlib import Path

import gguf
import numpy as np
import pytest

from adaptlab.gguf import load_gguf_header


def written(path: Path) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int32("i32", -5)
    writer.add_uint64("u64", 2**40)
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 1e-5)
    writer.add_bool("yes", True)
    writer.add_string("text", "Präsidentin\n")
    writer.add_array("words", ["Ġa", "", "日本"])
    writer.add_array("kinds", [1, 3, 4])
    writer.add_tensor("matrix", np.arange(96, dtype=np.float32).reshape(3, 32))
    writer.add_tensor("vector", np.arange(5, dtype=np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_values_equal_those_of_the_reference_reader(tmp_path: Path):
    path = written(tmp_path / "a.gguf")
    fields = gguf.GGUFReader(path).fields
    metadata = load_gguf_header(path).metadata
    assert metadata == {key: fields[key].contents() for key in metadata}
    assert {"words", "kinds", "u64", "f64", "text", "general.architecture"} <= set(metadata)


def test_tensors_lie_where_the_reference_reader_finds_them(tmp_path: Path):
    path = written(tmp_path / "a.gguf")
    reference = {t.name: t for t in gguf.GGUFReader(path).tensors}
    for name, tensor in load_gguf_header(path).tensors.items():
        assert tensor.shape == tuple(reference[name].shape[::-1])
        assert (tensor.start, tensor.type) == (reference[name].data_offset, reference[name].tensor_type)


def test_a_file_that_is_cut_anywhere_in_the_header_is_an_error_that_names_it(tmp_path: Path):
    path = written(tmp_path / "a.gguf")
    data = path.read_bytes()[: min(t.start for t in load_gguf_header(path).tensors.values()) - 32]
    for size in range(4, len(data), 7):
        (tmp_path / "cut.gguf").write_bytes(data[:size])
        with pytest.raises(ValueError, match=r"cut\.gguf has a damaged GGUF header near byte"):
            load_gguf_header(tmp_path / "cut.gguf")


def test_another_format_or_version_is_an_error(tmp_path: Path):
    (tmp_path / "a.gguf").write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="no GGUF file"):
        load_gguf_header(tmp_path / "a.gguf")
    (tmp_path / "a.gguf").write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(16))
    with pytest.raises(ValueError, match="version 1"):
        load_gguf_header(tmp_path / "a.gguf")
