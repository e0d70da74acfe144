"""What the documentation tells a reader to type exists and is accepted."""

import importlib
import importlib.util
import os
import re
import shlex
from pathlib import Path

import pytest

from adaptlab import config

CLONE = Path(__file__).parents[2]
PAGES = [CLONE / "README.md", CLONE / "CHANGELOG.md", CLONE / "LOG.md", *sorted((CLONE / "docs").glob("*.md"))]
SCHEMAS = {
    "experiments.classification": ("classification", "Study"),
    "experiments.forgetting": ("forgetting", "Study"),
    "experiments.loss_landscape": ("loss_landscape", "Study"),
    "experiments.low_rank": ("low_rank", "Study"),
    "experiments.lr_schedule": ("lr_schedule", "Study"),
    "experiments.numerics": ("numerics", "Study"),
    "experiments.pretrain": ("pretrain", "Study"),
    "experiments.scaling": ("scaling", "Study"),
    "experiments.search": ("search", "Study"),
    "scripts.evaluate": ("evaluate", "Evaluation"),
    "scripts.fit_annealing": ("fit_annealing", "Fitting"),
    "scripts.fit_scaling": ("fit_scaling", "Fitting"),
    "scripts.fisher_mask": ("fisher_mask", "Masking"),
    "scripts.launch": ("launch", "Launch"),
    "scripts.merge": ("merge", "Merging"),
    "scripts.peft": ("peft", "Exchange"),
    "scripts.plan": ("plan", "Planning"),
    "scripts.plot_schedule": ("plot_schedule", "Plot"),
}


def first(override: str) -> str:
    """The first of the values an override sweeps over."""
    key, _, value = override.partition("=")
    value = re.sub(r"^range\(.*\)$", "0", value)
    return f"{key}={value}" if value[:1] in "[{'\"" else f"{key}={value.split(',')[0]}"


def commands() -> list[str]:
    """Every line of every bash block."""
    blocks = [block for page in PAGES for block in re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.S | re.M)]
    return [line for block in blocks for line in block.splitlines() if line.strip()]


def accept(module: str, overrides: list[str]) -> None:
    """Compose and check a study's config, as the command does before it loads anything."""
    name, schema = SCHEMAS[module]
    given = [override for override in overrides if not override.startswith("-")]
    if "-m" in overrides:  # one job of the sweep; what is Hydra's own is not in a job's config
        given = [first(override) for override in given if not override.startswith("hydra")]
    given = getattr(importlib.import_module(module), "overrides", list)(given)
    config.validate(config.compose(name, given), schema=getattr(importlib.import_module(module), schema))


@pytest.mark.parametrize("line", commands())
def test_a_documented_command_is_accepted(line):
    words = shlex.split(line, comments=True)
    if words[0] == "source":
        assert (CLONE / words[1]).is_file()
    elif words[:2] == ["python", "-m"]:
        assert importlib.util.find_spec(words[2]) is not None
        accept(words[2], words[3:])
    else:
        assert os.access(CLONE / words[0], os.X_OK)
        if words[0] == "scripts/quickstart":
            accept("experiments.forgetting", words[1:])
        for option in (word for word in words[1:] if word.startswith("--")):
            assert f"{option})" in (CLONE / words[0]).read_text()


def test_the_main_commands_are_documented():
    readme = (CLONE / "README.md").read_text()
    for command in (
        "scripts/quickstart",
        "scripts/test",
        "python -m experiments.forgetting",
        "python -m scripts.evaluate",
    ):
        assert f"\n{command}" in readme


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_between_pages_lead_somewhere(page):
    links = re.findall(r"\]\((?!https?://)([^)#]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_readme_draws_every_room():
    drawing = (CLONE / "README.md").read_text().partition("## The house")[2]
    rooms = [path.name for path in (CLONE / "adaptlab").iterdir() if (path / "__init__.py").is_file()]
    assert [room for room in rooms if f"{room}/" not in drawing] == []
