import gc
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from adaptlab import tree
from adaptlab.adapt import frozen, full, partition
from adaptlab.optim import adamw
from adaptlab.shard import Placement, make_mesh, place
from adaptlab.train import CheckpointError, TrainState, fit, init_state, make_program, open_checkpoints
from tests.train import toy
from tests.train.test_loop import into, whole

# Where a read fails, Orbax leaves its other reads behind, unawaited.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(autouse=True)
def _leave_nothing_to_the_next_test() -> Iterator[None]:
    yield
    gc.collect()


def state_at(step: int) -> TrainState:
    rng = np.random.default_rng(step)
    delta = {"layers": {"a": jnp.asarray(rng.normal(size=(40, 7)), jnp.float32)}, "b": jnp.asarray(rng.random(3))}
    state = init_state(delta, optax.chain(optax.identity(), optax.scale_by_adam()))
    return state._replace(step=jnp.asarray(step, jnp.int32))


def save(folder: Path, *steps: int, keep: int = 2) -> None:
    checkpoints = open_checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(state_at(step))
    checkpoints.close()


def restore(folder: Path, like: TrainState | None = None) -> Any:
    checkpoints = open_checkpoints(folder)
    try:
        return checkpoints.restore(state_at(0) if like is None else like)
    finally:
        checkpoints.close()


def files_of(folder: Path, step: int) -> list[Path]:
    return sorted(path for path in (folder / "steps" / str(step)).rglob("*") if path.is_file())


def arrays_of(folder: Path, step: int) -> Path:
    """The file that holds the most bytes of arrays."""
    data = [path for path in files_of(folder, step) if path.parent.name == "d"]
    return max(data, key=lambda path: path.stat().st_size)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x10
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


DAMAGES: list[Callable[[Path], None]] = [flip, cut, Path.unlink]


def test_the_newest_state_comes_back_bit_by_bit(tmp_path: Path):
    save(tmp_path, 2, 4)
    got = restore(tmp_path)
    assert jax.tree.structure(got) == jax.tree.structure(state_at(4))
    assert tree.digest(got) == tree.digest(state_at(4))


def test_where_nothing_was_saved_there_is_nothing(tmp_path: Path):
    assert restore(tmp_path) is None


def test_only_the_newest_are_kept(tmp_path: Path):
    save(tmp_path, 1, 2, 3, 4, keep=2)
    assert sorted(p.name for p in (tmp_path / "steps").iterdir()) == ["3", "4"]


def test_fewer_than_two_cannot_be_kept(tmp_path: Path):
    with pytest.raises(ValueError, match="keep=1 must be at least 2"):
        open_checkpoints(tmp_path, keep=1)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_named_set_aside_and_the_one_before_is_used(
    damage: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    save(tmp_path, 2, 4)
    damage(arrays_of(tmp_path, 4))
    with caplog.at_level(logging.WARNING):
        got = restore(tmp_path)
    assert tree.digest(got) == tree.digest(state_at(2))
    assert "Damaged checkpoint" in caplog.text
    assert f"step 4 ({tmp_path / 'damaged'}" in caplog.text
    assert [p.name for p in (tmp_path / "steps").iterdir() if p.name.isdigit()] == ["2"]
    assert len(list((tmp_path / "damaged").iterdir())) == 1


@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_whatever_file_is_damaged_no_other_numbers_come_back(damage: Callable[[Path], None], tmp_path: Path):
    save(tmp_path / "good", 2, 4)
    whole_states = {tree.digest(state_at(step)) for step in (2, 4)}
    for i, path in enumerate(files_of(tmp_path / "good", 4)):
        folder = tmp_path / str(i)
        shutil.copytree(tmp_path / "good", folder)
        damage(folder / path.relative_to(tmp_path / "good"))
        assert tree.digest(restore(folder)) in whole_states, path


def test_training_goes_on_from_the_one_before_and_its_curves_are_the_same(tmp_path: Path):
    wanted: toy.Journal = {}
    last = whole(tmp_path / "wanted", wanted)
    journal: toy.Journal = {}
    whole(tmp_path / "damaged", journal)
    flip(arrays_of(tmp_path / "damaged", 4))
    resumed = whole(tmp_path / "damaged", journal)
    assert resumed.resumed_at == 2
    assert journal == wanted
    np.testing.assert_array_equal(resumed.state.delta["w"], last.state.delta["w"])
    assert whole(tmp_path / "damaged", journal).resumed_at == 4


def test_if_all_are_damaged_training_does_not_start_over(tmp_path: Path):
    save(tmp_path, 2, 4)
    for step in (2, 4):
        flip(arrays_of(tmp_path, step))
    with pytest.raises(CheckpointError, match=r"(?s)None of the 2 checkpoints .*step 4 .*step 2 .*start this run over"):
        restore(tmp_path)
    with pytest.raises(CheckpointError, match=r"set aside: .*2-1, .*4-0\. To start this run over"):
        restore(tmp_path)  # nor at the second attempt


def test_a_save_that_never_finished_is_no_checkpoint(tmp_path: Path):
    save(tmp_path, 2)
    torn = tmp_path / "steps" / "4.orbax-checkpoint-tmp-1"
    shutil.copytree(tmp_path / "steps" / "2", torn)
    files = [path for path in torn.rglob("*") if path.is_file()]
    files[0].unlink()
    assert tree.digest(restore(tmp_path)) == tree.digest(state_at(2))


def test_a_state_on_a_mesh_comes_back_where_it_was(tmp_path: Path):
    placement = Placement(make_mesh(data=4, tensor=2), None)
    state = place(state_at(3), jax.tree.map(lambda _: placement.replicated, state_at(3)))
    split = placement.shardings({"a": ("ffn", "embed")}, {"a": state.delta["layers"]["a"]})
    state.delta["layers"] = place(state.delta["layers"], split)
    checkpoints = open_checkpoints(tmp_path)
    checkpoints.save(state)
    got = checkpoints.restore(state)
    checkpoints.close()
    assert got is not None
    assert tree.digest(got) == tree.digest(state)
    assert jax.tree.map(lambda x: x.sharding, got) == jax.tree.map(lambda x: x.sharding, state)


def test_only_what_trains_is_saved(tmp_path: Path):
    big = toy.BASE | {"frozen": jnp.zeros((300, 300))}
    program = make_program(
        lambda numbers: toy.squares,
        lambda numbers: partition({"w": full(), ".*": frozen()}),
        lambda numbers: adamw(numbers["lr"], total_steps=9),
    )
    checkpoints = open_checkpoints(tmp_path)
    fit(toy.run(program=program, base=big), checkpoints, into({}))
    checkpoints.close()
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) < 100_000
