"""What a study's config may say: the schemas of its sections."""

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, NamedTuple

from adaptlab.config import Count, Interval
from adaptlab.train import Duration

__all__ = ["Base", "HeldOut", "Measured", "Method", "Probed", "Replication", "Training", "Wandb"]

Call = dict[str, Any]
"""A config node with `_target_`: a factory and its arguments."""


@dataclass(frozen=True)
class Base:
    """A pretrained model.

    Attributes:
      model: gives its functions and weights, see `adaptlab.models.pretrained`.
      tokenizer: gives its tokenizer, see `adaptlab.data.load_tokenizer`.
      weights: the source both read.
      optimizer: the source of the optimiser's state it was trained with, see `adaptlab.study.open_moments`; null if
        that is not known.
      quantize: rounds its weights to few bits as they are loaded: a scheme, e.g. nf4 or stored, or a mapping of the
        arguments of `adaptlab.models.Quantization`; null leaves them as they are.
      weights_dtype: of the weights where they rest, "float32" or "bfloat16", which takes half the memory. (What
        trains is kept in float32 beside them; `model.dtype` is that of activations and products.)
    """

    model: Call
    tokenizer: Call
    weights: Call
    optimizer: Call | None = None
    quantize: str | dict[str, Any] | None = None
    weights_dtype: str = "float32"


@dataclass(frozen=True)
class Method:
    """One way of adapting.

    Attributes:
      adapt: the adaptation's factory.
      optim: the optimiser's factory.
      learning_rates: runs one member per rate, in place of `optim.lr`; null runs `optim.lr` alone.
      loss: the training loss's factory; null is `adaptlab.models.language_modelling` as it is.
      terms: regularisers by name, e.g. `adaptlab.train.l2_sp`.
      stopping: early stopping, see `adaptlab.train.early_stopping`; null trains to the end.
      watch: the metric early stopping watches; null is the target's held-out loss.
      carry: how the optimiser's state of the base's own training is taken over, see `adaptlab.optim.carry`; null
        starts with a fresh one.
    """

    adapt: Call
    optim: Call
    learning_rates: list[float] | None = None
    loss: Call | None = None
    terms: dict[str, Call] | None = None
    stopping: Call | None = None
    watch: str | None = None
    carry: Call | None = None


class Replication(NamedTuple):
    """How runs that differ only in numbers are run together.

    Attributes:
      how: "auto" measures whether to batch them ("vmap") or to take them in turn inside one program ("map"); "alone"
        runs one after the other.
      slots: runs at a time; None takes as many as fit into memory.
      memory_gib: memory to fit in, per device; None asks the device.
    """

    how: Literal["auto", "vmap", "map", "alone"] = "auto"
    slots: Count | None = None
    memory_gib: Annotated[float, Interval(0, ends="()")] | None = None


class Training(NamedTuple):
    """How long, on how much at a time.

    Attributes:
      duration: how long to train.
      batch_size: rows per update, over all devices.
      length: tokens per row.
      accumulate: microbatches per update.
      moments: where the optimiser's state rests: "zero1" shares it out over `mesh.data` too, "host" keeps it in the
        host's memory; None is beside what it belongs to.
      pipeline: how a batch runs through the stages of a mesh: "1f1b", whose memory does not grow with the microbatches,
        or "gpipe" (see `adaptlab.models.pipelined`); None is "gpipe" with as many microbatches as are usual.
      microbatches: of a pipeline, for each of the `accumulate` parts of a batch.
      measure_every: steps between measurements.
      save_every: steps between checkpoints.
      keep: checkpoints to keep, at least 2.
      max_tokens: use only so many tokens of the target's training text; None for all.
    """

    duration: Duration
    batch_size: Count = 4
    length: Count = 128
    accumulate: Count = 1
    moments: Literal["zero1", "host"] | None = None
    pipeline: Literal["1f1b", "gpipe"] | None = None
    microbatches: Count | None = None
    measure_every: Count = 4
    save_every: Count = 20
    keep: Annotated[int, Interval(2, ends="[)")] = 2
    max_tokens: Count | None = None


class HeldOut(NamedTuple):
    """The text that is never trained on.

    Attributes:
      fraction: the share of each corpus's documents that is held out.
      tokens: how much of it is measured, per domain.
      batch_size: rows per forward pass.
      max_document_tokens: documents are cut there, so that more of them are seen.
    """

    fraction: float = 0.1
    tokens: Count = 4096
    batch_size: Count = 8
    max_document_tokens: int | None = 512


@dataclass(frozen=True)
class Probed:
    """What is measured while training besides held-out text, at the same steps; null measures nothing.

    conf/measure has a file for each, and what it costs. How their metrics are named: `adaptlab.study.training_probes`.

    Attributes:
      updates: of updates, see `adaptlab.measure.measured_updates`.
      trajectory: of the path through weight space, see `adaptlab.measure.weight_path`.
      drift: of hidden states beside the base's, see `adaptlab.measure.representation_drift` and `minibatch_cka`.
      heads: of attention heads, see `adaptlab.measure.attention_pattern`, `head_ablation` and `head_importance`.
      interference: of the gradients of other domains, see `adaptlab.measure.make_interference_probe`.
      noise_scale: of the gradient's noise, see `adaptlab.measure.gradient_noise`.
      stability: of the sharpness, see `adaptlab.measure.curvature.make_sharpness_probe`.
    """

    updates: Call | None = None
    trajectory: Call | None = None
    drift: Call | None = None
    heads: Call | None = None
    interference: Call | None = None
    noise_scale: Call | None = None
    stability: Call | None = None


@dataclass(frozen=True)
class Measured(Probed):
    """What is measured while training, and after it.

    Attributes:
      final: of updates after training, see `adaptlab.study.FinalUpdates`; null measures nothing.
    """

    final: Call | None = None


@dataclass(frozen=True)
class Wandb:
    """The W&B mirror.

    Attributes:
      mode: "auto" (online when logged in, otherwise offline), "online", "offline" or "disabled".
      project: the W&B project.
      tags: tags of every run.
    """

    mode: str = "auto"
    project: str = "adaptlab"
    tags: list[str] = field(default_factory=list)
