"""How much memory a process of a job needs: `python -m tests.hosts.memory <folder> <what> hosts.processes=2 …`.

Prints one JSON object: the bytes of the whole arrays, of this process's part, and the peak of the process's own
(anonymous) memory above where it began. On a CPU the parts that devices hold are in that memory too.
"""

import json
import re
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from adaptlab import shard, source, tree
from adaptlab.models import LlamaShape, llama, pretrained, save_hf
from adaptlab.train import TrainState, open_checkpoints
from tests.hosts.parts import joined

# 192 MiB, a sixth of it in each of the larger leaves.
SHAPE = LlamaShape(vocab_size=1024, width=1024, depth=4, heads=8, kv_heads=8, head_width=128, ffn_width=2816)


def own_memory() -> int:
    """The anonymous memory of this process, in bytes."""
    return 1024 * int(re.findall(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[0])


@contextmanager
def peak() -> Iterator[Callable[[], int]]:
    """Watch the memory of this process; gives `() -> bytes`, the most there was above the beginning."""
    begun, most, done = own_memory(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], own_memory() - begun)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield lambda: max(most[0], own_memory() - begun)
    finally:
        done.set()
        watcher.join()


def write(folder: Path) -> None:
    """The model's files, made by one process."""
    shapes = jax.eval_shape(llama(SHAPE).init, jax.random.key(0))
    save_hf(folder / "model", SHAPE, jax.tree.map(lambda x: np.full(x.shape, 0.5, np.float32), shapes), context=128)


def placement() -> shard.Placement:
    return shard.Placement(shard.make_mesh(fsdp=jax.device_count()), llama(SHAPE).axes())


def weights(folder: Path) -> Any:
    opened = pretrained(source.local(folder / "model"))
    assert opened.parts is not None
    params = opened.parts()
    where = placement().shardings(placement().axes, params)
    return jax.block_until_ready(shard.place(params, where))


def state(folder: Path) -> Any:
    """Restore a state that one process saved."""
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=placement().replicated)
    shapes = jax.eval_shape(llama(SHAPE).init, jax.random.key(0))
    where = placement().shardings(placement().axes, shapes)
    delta = jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), shapes, where)
    checkpoints = open_checkpoints(folder / "checkpoints")
    found = checkpoints.restore(TrainState(scalar, delta, (), scalar))  # pyright: ignore[reportArgumentType]
    checkpoints.close()
    assert found is not None
    return jax.block_until_ready(found.delta)


def save(folder: Path) -> None:
    scalar = shard.put(np.int32(1), placement().replicated)
    checkpoints = open_checkpoints(folder / "checkpoints")
    checkpoints.save(TrainState(scalar, weights(folder), (), scalar))
    checkpoints.close()


if __name__ == "__main__":
    at, what = Path(sys.argv[1]), sys.argv[2]
    joined(sys.argv[3:])
    if what == "write":
        write(at)
        save(at)
    else:
        jax.block_until_ready(jnp.zeros(8) + 1)
        with peak() as most:
            arrays = {"weights": weights, "state": state}[what](at)
            mine = sum(part.data.nbytes for x in jax.tree.leaves(arrays) for part in x.addressable_shards)
            print(json.dumps({"whole": tree.nbytes(arrays), "part": mine, "peak": most()}))
