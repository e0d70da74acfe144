"""docs/launching.md shows what a dry run shows; `python -m tests.launch.test_page` writes it anew."""

import re
import shlex
from pathlib import Path

import pytest

from adaptlab import config
from scripts import launch as command

PAGE = Path(__file__).parents[2] / "docs" / "launching.md"
SHOWN = re.compile(r"^`([\w.]+)`:\n\n(```\w+\n)(.*?)(^```)", re.S | re.M)
COMMAND = re.compile(r"^```bash\n(python -m scripts\.launch .*)\n```", re.M)


def sections() -> list[tuple[str, dict[str, str]]]:
    """Every command of the page, with the files that are shown below it."""
    _, *parts = COMMAND.split(PAGE.read_text())
    return [
        (line, {m[1]: m[3] for m in SHOWN.finditer(text)}) for line, text in zip(parts[::2], parts[1::2], strict=True)
    ]


def rendered(line: str) -> dict[str, str]:
    node = config.compose("launch", command.overrides(shlex.split(line)[3:]))
    return command.render(command.Launch(**config.validate(node, schema=command.Launch)))[0].files


@pytest.mark.parametrize(
    ("line", "shown"), sections(), ids=lambda x: None if isinstance(x, dict) else shlex.split(x)[3]
)
def test_the_page_shows_what_a_dry_run_shows(line: str, shown: dict[str, str]):
    files = rendered(line)
    assert shown == {name: files[name] for name in shown}


def test_the_page_shows_every_target():
    targets = {path.stem for path in (config.conf_dir() / "launch").glob("*.yaml")}
    shown = {word.removeprefix("target=") for line, files in sections() if files for word in shlex.split(line)}
    assert targets <= shown


def _rewrite() -> None:
    first, *parts = COMMAND.split(PAGE.read_text())
    text = first
    for line, below in zip(parts[::2], parts[1::2], strict=True):
        files = rendered(line)
        text += f"```bash\n{line}\n```" + SHOWN.sub(lambda m, f=files: f"`{m[1]}`:\n\n{m[2]}{f[m[1]]}{m[4]}", below)
    PAGE.write_text(text)


if __name__ == "__main__":
    _rewrite()
