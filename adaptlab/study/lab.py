"""What all members of a study share: the base on its devices, the text, and the probe over it."""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import numpy as np

from adaptlab import config, data, hosts, leaf, measure, models, shard
from adaptlab.models.stack import DTYPES
from adaptlab.study.devices import over_all_devices
from adaptlab.study.settings import Training
from adaptlab.study.text import Text, load_text

__all__ = [
    "Lab",
    "apart",
    "lab_settings",
    "load_lab",
    "open_base",
    "open_lab",
    "origin",
    "pipeline_of",
    "shares_labs",
    "sharing",
    "trained_on",
]

log = logging.getLogger(__name__)


class Lab(NamedTuple):
    """Everything that is loaded once.

    Attributes:
      pretrained: the base model.
      params: its weights, on their devices.
      placement: the mesh and its rules.
      measurement: what is measured on held-out text.
      held_out: `{domain: batches}`, on their devices.
      train: the target's packed training rows.
      training: the settings.
      total_steps: the number of updates.
      provenance: what the passport says of base and corpora.
      base: the config of the base, see `Base`.
      figures: whether studies in it draw figures; the jobs of a sweep leave that to the sweep.
      updates: what is measured of updates while training; None measures nothing of them.
      probes: the config of what else is measured while training, see `Probed`; None measures nothing else.
      text: what it was made of, on the host.
      spread: if its runs are spread over devices: the settings of the same lab without, see `lab_settings`.
    """

    pretrained: models.Pretrained
    params: Any
    placement: shard.Placement
    measurement: measure.Measurement
    held_out: dict[str, list[Any]]
    train: Any
    training: Training
    total_steps: int
    provenance: dict[str, Any]
    base: Mapping[str, Any]
    figures: bool = True
    updates: measure.MeasuredUpdates | None = None
    probes: Mapping[str, Any] | None = None
    text: Text | None = None
    spread: Mapping[str, Any] | None = None

    @property
    def target(self) -> str:
        """The domain adapted to: the first of those measured."""
        return next(iter(self.held_out))

    def batches(self, seed: int) -> Callable[[int], Any]:
        """Return `step -> batch` of a member's training text, on the host."""
        return data.make_stream(self.train, self.training.batch_size, seed, "train")

    def placed_batches(self, seed: int) -> Callable[[int], Any]:
        """Return `step -> batch` of a member's training text, on its devices; each host has only its own rows."""
        size, sharding = self.training.batch_size, self.placement.batch
        rows = shard.local_rows(sharding, size)
        stream = data.make_stream(self.train, size, seed, "train", rows)
        return lambda step: shard.put_rows(stream(step), rows, size, sharding)

    def put(self, batch: Any) -> Any:
        """Put a whole batch on its devices."""
        return shard.put(batch, self.placement.batch)


def open_base(
    base: Mapping[str, Any], mesh: jax.sharding.Mesh, **given: Any
) -> tuple[models.Pretrained, shard.Placement, Any]:
    """Open a base and put its weights on the mesh, quantised on the host before if its config says so.

    `given` is what the framework says of the model, such as the `classes` of a head.

    Raises:
      ConfigError: `base.quantize` says what its schemes do not have, or `base.weights_dtype` is no dtype of weights.
    """
    how = _quantization(base)
    pretrained = config.instantiate(base["model"], **given)
    pretrained, params = (
        (pretrained, (pretrained.parts or pretrained.load)()) if how is None else models.quantized(pretrained, how)
    )
    params = _stored_as(params, base.get("weights_dtype", "float32"))
    placement = shard.Placement(mesh, pretrained.model.axes())
    pretrained = pretrained._replace(model=models.placed(pretrained.model, placement))
    axes = leaf.array_axes(placement.axes, params)
    return pretrained, placement, shard.place(params, placement.shardings(axes, params))


def trained_on(placement: shard.Placement, training: Training) -> shard.Placement:
    """Return the placement with what a study's training says of it.

    Raises:
      ConfigError: a pipeline on a mesh without stages, or one without microbatches.
    """
    pipeline, microbatches = training.pipeline, training.microbatches
    if (pipeline is None) != (microbatches is None):
        raise config.ConfigError(
            f"training.pipeline={pipeline} and training.microbatches={microbatches}: give both (1f1b or gpipe, and how "
            "many parts of a batch), or neither."
        )
    if pipeline is not None and placement.mesh.shape["stage"] == 1:
        raise config.ConfigError(
            f"training.pipeline={pipeline} says how a batch runs through stages, and mesh.stage=1: choose mesh.stage, "
            "or training.pipeline=null."
        )
    return placement.with_moments(training.moments)


def pipeline_of(training: Training) -> dict[str, Any] | None:
    """Return the arguments of `adaptlab.models.pipelined` that a study's training says, or None."""
    return training.pipeline and {"microbatches": training.microbatches, "schedule": training.pipeline}


def _stored_as(params: Any, dtype: str) -> Any:
    """The weights in the dtype they are to rest in; quantised ones keep theirs."""
    if dtype not in DTYPES:
        raise config.ConfigError(f"base.weights_dtype={dtype!r} is not one of {sorted(DTYPES)}.")
    wanted = np.dtype(DTYPES[dtype])

    def cast(x: Any) -> Any:
        if leaf.is_node(x) or x.dtype == wanted:
            return x
        if isinstance(x, shard.Stored):
            return shard.Stored(x.shape, wanted, lambda index: x.read(index).astype(wanted))
        return np.asarray(x).astype(wanted)

    return jax.tree.map(cast, params, is_leaf=lambda x: leaf.is_node(x) or isinstance(x, shard.Stored))


def _quantization(base: Mapping[str, Any]) -> models.Quantization | None:
    asked = base.get("quantize")
    if asked is None:
        return None
    node = {"scheme": asked} if isinstance(asked, str) else asked
    return models.Quantization(**config.validate(node, "base.quantize", models.Quantization))


def origin(pretrained: models.Pretrained) -> dict[str, Any]:
    """Return what a passport says of a base."""
    said = {"name": pretrained.name, "sha256": pretrained.fingerprint}
    return said if pretrained.quantized is None else said | {"quantized": dict(pretrained.quantized)}


_SHARED: ContextVar[Mapping[str, Lab]] = ContextVar("labs", default={})  # noqa: B039 (never changed)
_SETTINGS = ("base", "target", "upstream", "training", "held_out", "mesh", "measure")


def lab_settings(study: Any) -> dict[str, Any]:
    """Return what of a study's config its lab is made of."""
    return {name: getattr(study, name) for name in _SETTINGS if hasattr(study, name)}


def open_lab(study: Any, *, spread: bool = False) -> Lab:
    """Load the base and the text of a study; the jobs of a sweep that have them in common share them.

    Args:
      study: has `base` (see `Base`), `target` (the config of the corpus to adapt to), `upstream` (those of the corpora
        not to forget, by name), `training` (see `Training`), `held_out` (see `HeldOut`) and `mesh` (the devices); may
        have `measure` (see `Probed`).
      spread: whether devices that the mesh does not use get runs of their own, see `over_all_devices`.
    """
    settings = lab_settings(study)
    if (shared := _SHARED.get().get(config.config_hash(settings))) is not None:
        return shared
    if not spread:
        return load_lab(settings)
    return load_lab(settings | {"mesh": over_all_devices(settings["mesh"])})._replace(spread=settings)


def apart(lab: Lab) -> list[Lab]:
    """Return the lab once for each part of its mesh's `replica` axis, on that part's devices alone.

    What is not one program over all of them runs on each by a thread of its own. In a job of many processes, of which
    none has all devices, it stays one lab. Each part opens the base for itself.
    """
    mesh = lab.placement.mesh
    if mesh.shape["replica"] == 1 or hosts.count() > 1:
        there = lab.params is not None  # the jobs of a sweep have let go of them
        return [lab if there else lab._replace(params=open_base(lab.base, mesh)[2])]

    def on(part: jax.sharding.Mesh) -> Lab:
        def move(x: jax.Array) -> jax.Array:
            return jax.device_put(x, jax.sharding.NamedSharding(part, x.sharding.spec))  # pyright: ignore[reportAttributeAccessIssue]

        pretrained, placement, params = open_base(lab.base, part)
        return lab._replace(
            pretrained=pretrained,
            params=params,
            placement=trained_on(placement, lab.training),
            measurement=measure.held_out_text(pretrained.model, token_bytes_V),
            held_out=jax.tree.map(move, lab.held_out),
        )

    token_bytes_V = config.instantiate(lab.base["tokenizer"]).token_bytes_V
    each = np.split(mesh.devices, mesh.shape["replica"], mesh.axis_names.index("replica"))
    return [on(jax.sharding.Mesh(devices, mesh.axis_names, axis_types=mesh.axis_types)) for devices in each]


@contextmanager
def sharing(labs: Iterable[tuple[Mapping[str, Any], Lab]]) -> Iterator[None]:
    """Inside, `open_lab` returns these labs for their settings instead of loading them again."""
    token = _SHARED.set({config.config_hash(settings): lab for settings, lab in labs})
    try:
        yield
    finally:
        _SHARED.reset(token)


def shares_labs() -> bool:
    """Whether this is a job of a sweep whose labs are shared: the sweep has chosen the devices."""
    return bool(_SHARED.get())


def load_lab(settings: Mapping[str, Any], text: Callable[[], Text] | None = None) -> Lab:
    """Load a lab from its part of a study's config.

    Args:
      settings: see `lab_settings`.
      text: returns the text of these settings, once the base has been opened; None loads it.
    """
    base = settings["base"]
    training, held_out, mesh = (config.instantiate(settings[name]) for name in ("training", "held_out", "mesh"))
    pretrained, placement, params = open_base(base, mesh)
    placement = trained_on(placement, training)
    if training.length > pretrained.context:
        raise config.ConfigError(
            f"training.length={training.length} is longer than the {pretrained.context} tokens {pretrained.name} "
            f"was trained on."
        )
    loaded = text() if text else load_text(settings)
    train = loaded.target.train
    lab = Lab(
        pretrained=pretrained,
        params=params,
        placement=placement,
        measurement=measure.held_out_text(pretrained.model, loaded.token_bytes_V),
        held_out={},
        train=train,
        training=training,
        total_steps=training.duration.in_steps(
            batch_size=training.batch_size, length=training.length, rows=len(train.tokens)
        ),
        provenance={
            "base": origin(pretrained),
            "corpora": {name: domain.provenance for name, domain in loaded.domains.items()},
        },
        base=base,
        updates=config.instantiate((settings.get("measure") or {}).get("updates")),
        probes=settings.get("measure"),
        text=loaded,
    )
    for name, domain in loaded.domains.items():
        batches = data.fixed_batches(domain.held_out, held_out.batch_size)
        lab.held_out[name] = [lab.put(batch) for batch in batches]
        counted = int(sum(np.sum(batch.weights) for batch in batches))
        log.info("%s: %d held-out tokens measured, %d rows to train on", name, counted, len(domain.train.tokens))
    return lab
