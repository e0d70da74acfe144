"""What Hugging Face calls the tensors of a base, in the class that a task loads it with."""

from pathlib import Path
from typing import Any

import jax

from adaptlab import leaf, tree
from adaptlab.models.pretrained import _open_gguf, _open_hf
from adaptlab.models.weights import Entry
from adaptlab.source import Source

__all__ = ["hf_names"]


def hf_names(source: Source, params: Any) -> tuple[list[Entry], str]:
    """Return the table of a base with the full names of its class, and the class's kind of task.

    The class is the one that `save_hf` would name: with the language model's head, with a classifier over BERT's pooler
    ("SEQ_CLS"), or the bare encoder ("FEATURE_EXTRACTION"). A base from a GGUF file has the names of the Hugging Face
    checkpoint it was made of ("CAUSAL_LM"). The experts and routers of a mixture are left out: a checkpoint keeps a
    module for each, and the class that reads it one tensor for all.

    Args:
      source: the base's file or folder.
      params: its weights, which say whether it has a head.
    """
    path = Path(source.fetch())
    opened = _open_gguf(path) if path.suffix == ".gguf" else _open_hf(path)
    shapes = {p: jax.eval_shape(leaf.dense, x).shape for p, x in tree.flatten(params, leaf.is_node).items()}
    config, prefix = opened.family.write(opened.shape, opened.context, shapes)
    architecture = config["architectures"][0]
    if architecture.endswith("ForSequenceClassification"):
        task = "SEQ_CLS"
    else:
        task = "CAUSAL_LM" if "LM" in architecture else "FEATURE_EXTRACTION"
    entries = [
        e for e in opened.family.entries(opened.shape) if not (opened.family.routed and "/feed_forward/" in e.path)
    ]
    return [e if e.path.startswith("classifier/") else e._replace(hf=prefix + e.hf) for e in entries], task
