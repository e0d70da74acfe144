"""The project file says what the code imports, and the locks say what the project file says."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

CLONE = Path(__file__).parents[2]
PROJECT = tomllib.loads((CLONE / "pyproject.toml").read_text())
RUNTIME = [Requirement(text) for text in PROJECT["project"]["dependencies"]]
DEVELOPMENT = [Requirement(text) for text in PROJECT["dependency-groups"]["dev"]]
OPTIONAL = [Requirement(text) for extra in PROJECT["project"]["optional-dependencies"].values() for text in extra]
OURS = {"adaptlab", "experiments", "scripts", "tests", "hydra_plugins"}


def imports(*folders: str) -> dict[str, str]:
    """`{distribution: a file that imports it}` of what is not ours and not Python's."""
    found = {}
    for path in [p for folder in folders for p in sorted((CLONE / folder).rglob("*.py"))]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            else:
                continue
            found |= {name.partition(".")[0]: str(path.relative_to(CLONE)) for name in names}
    outside = {name: path for name, path in found.items() if name not in OURS | sys.stdlib_module_names}
    distributions = packages_distributions()
    return {canonicalize_name(distributions.get(name, [name])[0]): path for name, path in outside.items()}


def declared(*groups: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for group in groups for requirement in group}


def locked(name: str) -> dict[str, set[str]]:
    """`{package: versions}` of a lock; several where they differ by platform."""
    versions: dict[str, set[str]] = {}
    for package, version in re.findall(r"^([\w.-]+)==([\w.!+-]+)", (CLONE / name).read_text(), re.MULTILINE):
        versions.setdefault(canonicalize_name(package), set()).add(version)
    return versions


def test_every_import_of_the_library_is_declared():
    known = declared(RUNTIME, OPTIONAL)
    undeclared = {
        name: path for name, path in imports("adaptlab", "experiments", "scripts").items() if name not in known
    }
    assert undeclared == {}


def test_every_declared_dependency_is_imported():
    assert declared(RUNTIME) - imports("adaptlab", "experiments", "scripts").keys() == set()


@pytest.mark.parametrize(
    ("lock", "requirements"),
    [("requirements.lock", RUNTIME), ("requirements-dev.lock", [*RUNTIME, *DEVELOPMENT])],
)
def test_the_lock_holds_what_the_project_asks_for(lock, requirements):
    versions = locked(lock)
    for requirement in requirements:
        found = versions.get(canonicalize_name(requirement.name), set())
        assert found, f"{requirement.name} is not in {lock}: run scripts/lock"
        assert all(requirement.specifier.contains(v, prereleases=True) for v in found), (
            f"{requirement} does not allow {found} of {lock}: run scripts/lock"
        )


def test_the_locks_agree():
    development = locked("requirements-dev.lock")
    assert {name: development.get(name) for name in locked("requirements.lock")} == locked("requirements.lock")


@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock"])
def test_the_lock_is_hashed_and_names_no_place(lock):
    text = (CLONE / lock).read_text()
    pins = re.split(r"^(?=[\w.-]+==)", text, flags=re.MULTILINE)[1:]
    assert len(pins) > 50
    assert all("--hash=sha256:" in pin for pin in pins)
    assert not re.search(r"https?:|file:|index-url|find-links|^-", text, re.MULTILINE)
    assert "torch" not in locked(lock)
