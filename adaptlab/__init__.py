"""adaptlab: the scaling and optimisation dynamics of model adaptation, in JAX.

Rooms are imported on first use, so `--help` of an experiment never pays for JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules={
        "adapt",
        "config",
        "data",
        "flops",
        "gguf",
        "hosts",
        "launch",
        "leaf",
        "linalg",
        "measure",
        "models",
        "optim",
        "plan",
        "preempt",
        "report",
        "rng",
        "runtime",
        "scaling",
        "shard",
        "source",
        "stats",
        "train",
        "study",
        "tree",
    },
)

__version__ = "0.1.0"
