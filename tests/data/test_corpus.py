import io
import logging
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adaptlab.data import csv_corpus, fingerprint, folder_corpus, local_text, make_corpus, text_corpus
from adaptlab.source import local

ROWS = 'chair,text\nFALSE,"Frau Präsidentin ! Meine\nDamen"\nTRUE,Bitte .\nFALSE,\nFALSE,  bitte   . \nFALSE,Danke\n'


def csv_file(folder: Path, content: str = ROWS) -> Path:
    (folder / "de.csv").write_text(content, encoding="utf-8")
    return folder / "de.csv"


def tree(folder: Path, files: dict[str, bytes]) -> Path:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return folder


def test_rows_become_documents_without_empty_and_repeated_ones(tmp_path: Path):
    corpus = csv_corpus(local(csv_file(tmp_path), licence="CC0"), "text", "german")
    assert corpus.documents == ("Frau Präsidentin ! Meine\nDamen", "Bitte .", "Danke")
    assert (corpus.name, corpus.licence, corpus.origin["column"]) == ("german", "CC0", "text")


@pytest.mark.parametrize("value", [False, "FALSE", "false"])
def test_where_keeps_the_rows_with_that_value(tmp_path: Path, value: object):
    corpus = csv_corpus(local(csv_file(tmp_path)), "text", "german", where={"chair": value})
    assert corpus.documents == ("Frau Präsidentin ! Meine\nDamen", "  bitte   . ", "Danke")


def test_a_document_longer_than_the_limit_of_csv_is_read(tmp_path: Path):
    path = csv_file(tmp_path, f"text\n{'a' * 200_000}\n")
    assert len(csv_corpus(local(path), "text", "long").documents[0]) == 200_000


def test_csv_errors_name_the_file_the_columns_and_the_values(tmp_path: Path):
    source = local(csv_file(tmp_path))
    with pytest.raises(ValueError, match=r"de\.csv has no column \['texts'\]; it has chair, text"):
        csv_corpus(source, "texts", "german")
    with pytest.raises(ValueError, match=r"no column \['party'\]"):
        csv_corpus(source, "text", "german", where={"party": "x"})
    with pytest.raises(ValueError, match=r"no row .*\{'chair': 'maybe'\}.*\['FALSE', 'TRUE'\]"):
        csv_corpus(source, "text", "german", where={"chair": "maybe"})
    with pytest.raises(ValueError, match="has no rows"):
        csv_corpus(local(csv_file(tmp_path, "text\n")), "text", "german")
    (tmp_path / "de.csv").write_bytes("text\nPräsidentin\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"is not utf-8-sig.*encoding="):
        csv_corpus(source, "text", "german")
    assert csv_corpus(source, "text", "german", encoding="latin-1").documents == ("Präsidentin",)


def test_files_become_documents_in_the_order_of_their_paths(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    files = {"b.py": b"b", "a/z.py": b"z", "a/test/x.py": b"x", "a/notes.txt": b"n", "big.py": b"#" * 100}
    folder = tree(tmp_path, files | {"latin.py": b"\xe4", "empty.py": b"", "bom.py": b"\xef\xbb\xbfm"})
    with caplog.at_level(logging.INFO):
        corpus = folder_corpus(local(folder), "code", exclude=["test*"], max_bytes=50)
    assert corpus.documents == ("z", "b", "m")
    assert "1 files are not utf-8-sig" in caplog.text
    assert "latin.py" in caplog.text


@pytest.mark.parametrize("pattern", ["**/*.py", "*.py", "a/*.py", "**/b/**/*.py", "a/**/*.py", "**/[xy].*", "*/?/*"])
def test_patterns_mean_what_they_mean_to_pathlib(tmp_path: Path, pattern: str):
    names = ["x.py", "y.txt", "a/x.py", "a/b/x.py", "a/b/c/d/y.py", "b/y.txt", "c/a/x.py", "a/.hidden.py"]
    folder = tree(tmp_path / "here", {name: name.encode() for name in names})
    (folder / "a" / "dangling.py").symlink_to(folder / "nowhere")
    (folder / "linked").symlink_to(tree(tmp_path / "elsewhere", {"b/x.py": b"linked/b/x.py"}))
    wanted = sorted(p.relative_to(folder).as_posix() for p in folder.glob(pattern) if p.is_file())
    assert folder_corpus(local(folder), "code", pattern=pattern).documents == tuple(wanted)


def test_a_pattern_that_finds_nothing_is_an_error_that_counts_before_excluding(tmp_path: Path):
    tree(tmp_path, {"a.py": b"a"})
    with pytest.raises(ValueError, match=r"matches '\*\*/\*\.rs' \(0 before"):
        folder_corpus(local(tmp_path), "code", pattern="**/*.rs")
    with pytest.raises(ValueError, match=r"1 before exclude=\['\*'\]"):
        folder_corpus(local(tmp_path), "code", exclude=["*"])
    with pytest.raises(ValueError, match="min_bytes"):
        folder_corpus(local(tmp_path), "code", min_bytes=5, max_bytes=2)


@pytest.mark.parametrize(
    ("split", "documents"),
    [
        ("file", ("one\ntwo\r\n \r\nthree\n",)),
        ("paragraph", ("one\ntwo\r", "three\n")),
        ("line", ("one", "two", "three")),
    ],
)
def test_a_text_is_cut_into_what_is_asked_for(tmp_path: Path, split: str, documents: tuple[str, ...]):
    tree(tmp_path, {"my.txt": b"one\ntwo\r\n \r\nthree\n"})
    assert local_text(tmp_path / "my.txt", split=split).documents == documents
    assert local_text(str(tmp_path), split=split, name="mine").documents == documents
    assert local_text(tmp_path / "my.txt").name == "my"
    with pytest.raises(ValueError, match="choose from file, paragraph, line"):
        text_corpus(local(tmp_path), "mine", split="page")


def test_nothing_but_white_space_is_no_corpus(tmp_path: Path):
    tree(tmp_path, {"my.txt": b" \n\n\t"})
    with pytest.raises(ValueError, match=r"corpus 'my' has no document.*my\.txt"):
        local_text(tmp_path / "my.txt")


def test_the_digest_follows_content_order_and_boundaries():
    digests = {make_corpus("x", documents).digest for documents in (["ab", "c"], ["a", "bc"], ["c", "ab"], ["abc"])}
    assert len(digests) == 4
    assert make_corpus("y", ["ab", "c", " "]).digest == make_corpus("x", ["ab", "c"]).digest


@given(text=st.text(max_size=40), space=st.sampled_from([" ", "\n", "\t ", "\u00a0"]))
def test_the_fingerprint_ignores_white_space_and_composition(text: str, space: str):
    assert fingerprint(f"ä {text}") == fingerprint(f"{space}a\u0308{space}{text}{space}")


def test_the_fingerprint_ignores_case_and_sees_everything_else():
    assert fingerprint("Straße") == fingerprint("STRASSE")
    assert fingerprint("a b") != fingerprint("ab")
    assert fingerprint("a.") != fingerprint("a")


def test_a_zip_inside_a_source_is_named_when_it_is_not_a_csv(tmp_path: Path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("de.csv", ROWS * 9)
    (tmp_path / "de.zip").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"de\.zip is not utf-8-sig|de\.zip has no column"):
        csv_corpus(local(tmp_path / "de.zip"), "text", "german")
