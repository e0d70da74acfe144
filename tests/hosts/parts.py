"""What each process of a job does in `test_hosts.py`: `python -m tests.hosts.parts <folder> hosts.processes=2 …`.

Every part raises if its claim does not hold, in any process.
"""

import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from adaptlab import hosts, shard
from adaptlab.data import Batch, make_stream
from adaptlab.train import TrainState, open_checkpoints
from adaptlab.train.checksum import checksum


def joined(arguments: list[str]) -> None:
    given = dict(one.removeprefix("hosts.").split("=") for one in arguments)
    numbers = {name: int(value) if value.isdigit() else value for name, value in given.items()}
    if numbers:
        hosts.start(hosts.Hosts(**numbers, wait_seconds=60))


def agreement(folder: Path) -> None:
    assert hosts.agreed(lambda: ["the leader's", hosts.is_leader()]) == ["the leader's", True]
    same = hosts.common_outcome(ValueError("of all"))
    assert isinstance(same, ValueError)
    one = hosts.common_outcome(None if hosts.is_leader() else ValueError("of one"))
    assert "of one" in str(one)
    assert isinstance(one, hosts.HostError if hosts.is_leader() else ValueError)

    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    (folder / "journal").write_text("before")
    hosts.barrier()
    with hosts.mirrored(folder) as own:
        assert (own == folder) == hosts.is_leader()
        assert (own / "journal").read_text() == "before"
        assert hosts.shared(own / "checkpoints") == folder / "checkpoints"
        with hosts.mirrored(own / "job") as job:  # of a sweep: no meeting, and no other folder
            assert job == own / "job"
        (own / "journal").write_text(f"by {jax.process_index()}")
        print("on the terminal")
    hosts.barrier()
    assert (folder / "journal").read_text() == "by 0"


def batches(_: Path) -> None:
    packed = Batch(*(np.arange(60).reshape(10, 6) + i for i in range(len(Batch._fields))))
    for sizes in ({"data": 4}, {"data": 2, "tensor": 2}, {"tensor": 4}, {"fsdp": 2, "context": 2}):
        where = shard.Placement(shard.make_mesh(**sizes), None).batch
        rows = shard.local_rows(where, 4)
        got = shard.put_rows(make_stream(packed, 4, 0, rows=rows)(3), rows, 4, where)
        for part, whole in zip(shard.fetch(got), make_stream(packed, 4, 0)(3), strict=True):
            np.testing.assert_array_equal(part, whole)


def state_of(sharding: NamedSharding, step: int) -> TrainState:
    everywhere = NamedSharding(sharding.mesh, PartitionSpec())
    x = np.random.default_rng(step).normal(size=(64, 64)).astype(np.float32)
    scalar = shard.put(np.int32(step), everywhere)
    return TrainState(scalar, {"w": shard.put(x, sharding)}, (), scalar)


def over(sizes: dict[str, int], *spec: str | None) -> NamedSharding:
    return NamedSharding(shard.make_mesh(**sizes), PartitionSpec(*spec))


def checkpoints(folder: Path) -> None:
    """Saved by one layout, restored to another; then with one process's part of the newest damaged."""
    rows, columns = over({"data": 4}, "data"), over({"data": 2, "tensor": 2}, None, "tensor")
    states = {step: state_of(rows, step) for step in (1, 2)}
    sums = {step: checksum(state._asdict()) for step, state in states.items()}
    kept = open_checkpoints(folder / "run")
    for state in states.values():
        kept.save(state)
    kept.close()
    assert json.loads((folder / "run/steps/2/digest/metadata").read_text())["checksum"] == sums[2]

    def restored(sharding: NamedSharding) -> TrainState:
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state_of(sharding, 0)
        )
        again = open_checkpoints(folder / "run")
        found = again.restore(like)
        again.close()
        assert found is not None
        assert found.delta["w"].sharding == sharding
        return found

    assert checksum(restored(columns)._asdict()) == sums[2]
    if hosts.is_leader():
        (one, *_) = sorted((folder / "run/steps/2/state").glob("ocdbt.process_1/d/*"), key=lambda p: -p.stat().st_size)
        damaged = bytearray(one.read_bytes())
        damaged[len(damaged) // 2 :] = b""
        one.write_bytes(damaged)
    hosts.barrier()
    assert checksum(restored(rows)._asdict()) == sums[1]
    assert not (folder / "run/steps/2").exists()
    assert len(list((folder / "run/damaged").iterdir())) == 1


if __name__ == "__main__":
    joined(sys.argv[2:])
    assert jax.process_count() == 2
    assert jnp.ones(3).sum() == 3
    for part in (agreement, batches, checkpoints):
        part(Path(sys.argv[1]))
        print(f"[{part.__name__}]", file=sys.stderr)
