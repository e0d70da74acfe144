"""What is installed is what is tested: the wheel works from another folder, without the clone."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CLONE = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel of this clone."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*build, "--no-index", "--no-build-isolation", "--wheel-dir", str(folder), str(CLONE)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def names(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def test_the_wheel_holds_every_yaml_where_the_package_looks(wheel):
    expected = {f"adaptlab/{path.relative_to(CLONE)}" for path in CLONE.glob("conf/**/*.yaml")}
    assert "adaptlab/conf/forgetting.yaml" in expected
    assert expected <= names(wheel)


def test_the_wheel_holds_every_file_of_the_package(wheel):
    files = [path for path in (CLONE / "adaptlab").rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    expected = {str(path.relative_to(CLONE)) for path in files}
    assert "adaptlab/report/report.html.jinja" in expected
    assert expected <= names(wheel)


def test_the_wheel_holds_the_licence_and_nothing_of_the_clone(wheel):
    tops = {name.partition("/")[0] for name in names(wheel)}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"adaptlab", "hydra_plugins"}
    assert any(name.endswith("licenses/LICENSE") for name in names(wheel))


def test_the_wheel_works_from_another_folder(wheel, tmp_path):
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    # -I: neither the current folder nor PYTHONPATH; the wheel's folder comes before an editable install of the clone.
    script = f"""
import sys
sys.path.insert(0, {str(site)!r})
import importlib, pkgutil, adaptlab
for module in pkgutil.walk_packages(adaptlab.__path__, "adaptlab."):
    assert importlib.import_module(module.name).__file__.startswith({str(site)!r}), module
job = adaptlab.config.compose("forgetting", ["experiment=forgetting_smoke"])
assert adaptlab.config.instantiate(adaptlab.config.validate(job["training"])).measure_every == 2
from importlib.resources import files
print(files("adaptlab.report").joinpath("report.html.jinja").is_file())
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script], cwd=elsewhere, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"]
    assert list(elsewhere.iterdir()) == []
