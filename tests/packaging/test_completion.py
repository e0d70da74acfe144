"""Tab completes what Hydra knows, for commands that are modules."""

import subprocess
import sys
from pathlib import Path

import pytest

CLONE = Path(__file__).parents[2]
SCRIPT = """
source scripts/complete.bash
COMP_LINE=$1 COMP_POINT=${#1} COMPREPLY=()
_adaptlab_complete
printf '%s\\n' ${COMPREPLY[@]+"${COMPREPLY[@]}"}
"""


def complete(line: str) -> list[str]:
    """What Tab offers at the end of a line, whose first word is this Python."""
    typed = f"{sys.executable} {line}"
    done = subprocess.run(["bash", "-euc", SCRIPT, "-", typed], cwd=CLONE, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("-m exp", "experiments.forgetting"),
        ("-m experiments.forgetting ba", "base="),
        ("-m experiments.forgetting base=", "smollm2"),
        ("-m experiments.forgetting experiment=", "forgetting_full"),
        ("-m experiments.forgetting training.l", "training.length="),
        ("-m experiments.forgetting base=local training.measure", "training.measure_every="),
        ("-m experiments.forgetting domain@target=eng", "english_news"),
        ("-m scripts.evaluate te", "text="),
    ],
)
def test_tab_offers(line, expected):
    assert expected in complete(line)


@pytest.mark.parametrize("line", ["-m json.to", "train.py base=", "-m experiments.forgetting no_such_key"])
def test_tab_leaves_other_words_alone(line):
    assert complete(line) == []
