"""What two real processes of one job hold in common, and what each has of its own."""

import json
from pathlib import Path

import pytest

from adaptlab import hosts
from tests.hosts.processes import ended, said, start


def test_two_processes_agree_share_batches_and_checkpoints_and_settle_on_the_same_whole_one(tmp_path: Path):
    processes = start(["tests.hosts.parts", str(tmp_path / "folder")], 2, tmp_path, tmp_path / "cache")
    assert ended(processes, 120) == [0, 0], said(tmp_path)
    assert [("on the terminal" in (tmp_path / f"{i}.txt").read_text()) for i in (0, 1)] == [True, False]


def test_alone_everything_is_as_it_is(tmp_path: Path):
    hosts.start(hosts.Hosts())
    error = ValueError("mine")
    assert hosts.agreed(lambda: {"a": (1, 2)}) == {"a": (1, 2)}
    assert hosts.common_outcome(None) is None
    assert hosts.common_outcome(error) is error
    with hosts.mirrored(tmp_path) as folder:
        assert folder == hosts.shared(folder) == tmp_path
    assert hosts.is_leader()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"processes": 2}, r"hosts\.process=None, hosts\.coordinator=None: give all three, or hosts=auto"),
        ({"processes": 2, "process": 2, "coordinator": "a:1"}, r"hosts\.process=2: choose from 0 to 1"),
    ],
)
def test_half_a_description_of_a_job_is_an_error_with_a_remedy(given: dict, message: str):
    with pytest.raises(ValueError, match=message):
        hosts.start(hosts.Hosts(**given))


@pytest.mark.slow
def test_weights_and_checkpoints_never_need_more_than_a_part_and_the_largest_leaf(tmp_path: Path):
    def measured(what: str, processes: int) -> list[dict[str, int]]:
        command = ["tests.hosts.memory", str(tmp_path / "folder"), what]
        assert ended(start(command, processes, tmp_path, tmp_path / "cache")) == [0] * processes, said(tmp_path)
        lines = [(tmp_path / f"{i}.txt").read_text().splitlines() for i in range(processes)]
        return [json.loads(line) for found in lines for line in found if line.startswith("{")]

    measured("write", 1)
    for what in ("weights", "state"):
        for one in measured(what, 2):
            assert one["part"] == pytest.approx(one["whole"] / 2, rel=0.01)
            assert one["peak"] < 0.9 * one["whole"]  # a part, what is being read, and what reading needs
