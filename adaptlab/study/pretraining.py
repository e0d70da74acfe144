"""Training a base from random weights, on an even mixture of text, until it can be adapted like any other."""

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from adaptlab import adapt, config, data, hosts, measure, models, report, rng, shard, source, train, tree
from adaptlab.data.bpe import sample_text, train_bpe
from adaptlab.optim.carry import save_moments
from adaptlab.study import folder as folders
from adaptlab.study.lab import pipeline_of, trained_on
from adaptlab.study.provenance import finished_passport
from adaptlab.study.settings import HeldOut, Training

__all__ = ["Pretraining", "open_pretraining", "pretrain", "pretraining_passport"]

log = logging.getLogger(__name__)

_RESULT, _TOKENIZER, _WEIGHTS = "result.json", "tokenizer.json", "model.safetensors"


class Pretraining(NamedTuple):
    """Everything that is loaded once.

    Attributes:
      shape: the model's sizes.
      model: its functions.
      loss: what is trained for.
      params: its random weights, on their devices.
      placement: the mesh and its rules.
      held_out: `{domain: batches}`, on their devices.
      train: `{domain: packed training rows}`.
      token_bytes_V: see `adaptlab.data.Tokenizer`.
      training: the settings.
      total_steps: the number of updates.
      seed: of the weights and of the order of the text.
      corpora: what the passport says of the text.
    """

    shape: models.LlamaShape | models.MixtralShape
    model: models.Model
    loss: train.Loss
    params: Any
    placement: shard.Placement
    held_out: dict[str, list[data.Batch]]
    train: dict[str, data.Batch]
    token_bytes_V: np.ndarray
    training: Training
    total_steps: int
    seed: int
    corpora: dict[str, Any]

    def batches(self) -> Callable[[int], data.Batch]:
        """Return `step -> batch`: equally many rows of each domain, every domain in epochs of its own."""
        size, sharding = self.training.batch_size, self.placement.batch
        rows, each = shard.local_rows(sharding, size), size // len(self.train)
        streams = [
            data.make_stream(text, each, self.seed, f"pretrain/{name}", rows[rows // each == i] % each)
            for i, (name, text) in enumerate(self.train.items())
        ]

        def batch(step: int) -> data.Batch:
            parts = [stream(step) for stream in streams]
            joined = data.Batch(*(np.concatenate(x) for x in zip(*parts, strict=True)))
            return shard.put_rows(joined, rows, size, sharding)

        return batch


def open_pretraining(
    shape: models.LlamaShape | models.MixtralShape,
    domains: Mapping[str, Mapping[str, Any]],
    training: Training,
    held_out: HeldOut,
    mesh: jax.sharding.Mesh,
    seed: int,
    folder: Path,
    *,
    loss: Mapping[str, Any] | None = None,
    capacity_factor: float | None = None,
) -> Pretraining:
    """Learn the tokenizer (once a folder), load the text and draw the weights.

    Text is split as in every study, by the hash of each document: what studies hold out is seen neither by the
    tokenizer nor by the model.

    Args:
      shape: the model's sizes; V is the tokenizer's too.
      domains: the configs of the corpora, by name.
      training: see `Training`; `max_tokens` is of each domain.
      held_out: see `HeldOut`.
      mesh: the devices.
      seed: of the weights and of the order of the text.
      folder: the base's.
      loss: the loss's config; None is `adaptlab.models.language_modelling` as it is.
      capacity_factor: of a mixture of experts, see `adaptlab.models.mixtral`.

    Raises:
      ConfigError: the batch cannot be shared evenly by the domains.
    """
    if training.batch_size % len(domains):
        raise config.ConfigError(
            f"training.batch_size={training.batch_size} is no multiple of the {len(domains)} domains: each gives "
            "equally many rows of a batch."
        )
    corpora = {name: config.instantiate(node) for name, node in domains.items()}
    tokenizer = _tokenizer(folder / _TOKENIZER, corpora, shape.vocab_size, held_out.fraction)
    loaded = {name: _domain(corpus, tokenizer, training, held_out) for name, corpus in corpora.items()}
    rows = {name: len(domain.train.tokens) for name, domain in loaded.items()}
    log.info("rows of %d tokens to train on: %s", training.length, rows)
    model = models.from_shape(shape, capacity_factor=capacity_factor)
    placement = trained_on(shard.Placement(mesh, model.axes()), training)
    model = models.placed(model, placement)
    plain = config.instantiate(loss, model=model) if loss else models.language_modelling(model)
    pipeline = pipeline_of(training)
    key = rng.key_for(seed, "pretrain/init")
    where = placement.shardings(placement.axes, jax.eval_shape(model.init, key))
    fixed = {name: data.fixed_batches(domain.held_out, held_out.batch_size) for name, domain in loaded.items()}
    return Pretraining(
        shape=shape,
        model=model,
        loss=models.pipelined(plain, **pipeline) if pipeline else plain,
        params=jax.jit(model.init, out_shardings=where)(key),
        placement=placement,
        held_out={name: [shard.put(x, placement.batch) for x in batches] for name, batches in fixed.items()},
        train={name: domain.train for name, domain in loaded.items()},
        token_bytes_V=tokenizer.token_bytes_V,
        training=training,
        total_steps=training.duration.in_steps(
            batch_size=training.batch_size, length=training.length, rows=sum(rows.values())
        ),
        seed=seed,
        corpora={name: domain.provenance for name, domain in loaded.items()},
    )


def _domain(corpus: data.Corpus, tokenizer: data.Tokenizer, training: Training, held_out: HeldOut) -> data.Domain:
    return data.load_domain(
        corpus,
        tokenizer,
        training.length,
        held_out=held_out.fraction,
        max_train_tokens=training.max_tokens,
        max_held_out_tokens=held_out.tokens,
        max_document_tokens=held_out.max_document_tokens,
    )


def _tokenizer(path: Path, corpora: Mapping[str, data.Corpus], vocab_size: int, held_out: float) -> data.Tokenizer:
    """Read the folder's tokenizer; learn it from the training sides first if it is not there."""
    if not path.exists():
        sides = {name: data.split(corpus, held_out).train for name, corpus in corpora.items()}
        partial = path.with_name(path.name + ".partial")
        partial.write_text(train_bpe(sample_text(sides, characters=1_000_000), vocab_size))
        os.replace(partial, path)
    return data.json_tokenizer(path)


def pretrain(
    work: Pretraining, optim: Mapping[str, Any], folder: Path, wandb: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Train all weights, from the newest checkpoint if there is one, and return `{"pretrain": result}`.

    Leaves in `folder`: `model/` (a Hugging Face folder with the tokenizer), `optimizer.safetensors` (the moments it
    ended with), `runs/pretrain/journal.jsonl` and `result.json`.

    Args:
      work: what to train, on what.
      optim: the optimiser's config.
      folder: the base's.
      wandb: the settings of the W&B mirror, see `Wandb`.

    Raises:
      ValueError: the training diverged.
    """
    home = folder / "runs" / "pretrain"
    if (home / _RESULT).exists():
        return {"pretrain": json.loads((home / _RESULT).read_text())}
    skeleton, numbers = config.split(optim)
    compiled = _compile(work, skeleton, numbers)
    log.info("compiled in %.1f s", compiled.seconds)
    clock = train.Clock()
    fitted = _fit(work, compiled, numbers, home, clock, wandb)
    if fitted.diverged_at is not None:
        raise ValueError(
            f"optim.lr={numbers['lr']:g} diverged at step {fitted.diverged_at}; remove {folder} and choose a smaller "
            "rate."
        )
    _export(work, fitted.state, numbers, folder)
    tokens = work.training.batch_size * work.training.length
    result = {
        "method": "pretrain",
        "lr": numbers["lr"],
        "seed": work.seed,
        "steps": work.total_steps,
        "trainable_parameters": tree.count(work.params),
        "flops": compiled.flops * work.total_steps,
        "flops_per_token": compiled.flops / tokens,
        "tokens_per_second": tokens / float(np.median(clock.seconds)) if clock.seconds else None,
        "peak_memory_bytes": compiled.memory_bytes,
        "diverged_at": None,
        "delta_digest": tree.digest(shard.fetch(fitted.state.delta)),
    }
    folders.write_json(home / _RESULT, result)
    hosts.barrier()  # the leader's result is on disk, and no process reads checkpoints any more
    if hosts.is_leader():
        shutil.rmtree(home / "checkpoints", ignore_errors=True)
    return {"pretrain": result}


def _compile(work: Pretraining, skeleton: Any, numbers: Mapping[str, float]) -> train.Compiled:
    def optimizer(values: Mapping[str, Any]) -> Any:
        return config.instantiate(config.fill(skeleton, values), total_steps=work.total_steps)

    program = train.make_program(
        lambda _: work.loss,
        lambda _: adapt.full(),
        optimizer,
        accumulate=work.training.accumulate,
        placement=work.placement,
    )
    return train.compile_program(program, *train.device_numbers(numbers, work.seed), work.params, work.batches()(0))


def _fit(
    work: Pretraining,
    compiled: train.Compiled,
    numbers: Mapping[str, float],
    home: Path,
    clock: train.Clock,
    wandb: Mapping[str, Any],
) -> train.Fitted:
    measurement = measure.held_out_text(work.model, work.token_bytes_V)
    probe = measure.make_probe(measurement, work.held_out, compiled.program.bind)
    run = train.Run(
        program=compiled.program,
        numbers=numbers,
        seed=work.seed,
        base=work.params,
        batches=work.batches(),
        probe=lambda *args: {f"held_out/{name}": value for name, value in probe(*args).items()},
        total_steps=work.total_steps,
        measure_every=work.training.measure_every,
        save_every=work.training.save_every,
    )
    checkpoints = train.open_checkpoints(hosts.shared(home) / "checkpoints", keep=work.training.keep)
    sinks: list[report.Sink] = []

    def open_writer(step: int) -> train.Writer:
        report.truncate_journal(home / "journal.jsonl", step)
        mirror = report.wandb_sink(
            wandb["project"],
            name="pretrain",
            group="pretrain",
            config={"numbers": dict(numbers), "seed": work.seed},
            dir=home,
            mode=wandb["mode"],
            tags=wandb["tags"],
        )
        shown = report.progress("pretrain", work.total_steps, next(iter(work.held_out)))
        sinks.append(report.tee(report.journal(home / "journal.jsonl"), report.tee(shown, mirror)))
        return train.Writer(sinks[0].write, sinks[0].flush)

    try:
        return train.fit(run, checkpoints, open_writer, clock)
    finally:
        checkpoints.close()
        for sink in sinks:
            sink.close()


def _export(work: Pretraining, state: train.TrainState, numbers: Mapping[str, float], folder: Path) -> None:
    """Write weights, tokenizer and moments; `model/`, by which other studies know the base, appears whole and last."""
    partial, model = folder / "model.partial", folder / "model"
    shutil.rmtree(partial, ignore_errors=True)
    models.save_hf(partial, work.shape, shard.fetch(state.delta), context=work.training.length)
    shutil.copy(folder / _TOKENIZER, partial / _TOKENIZER)
    betas = {name: numbers[name] for name in ("b1", "b2") if name in numbers}
    save_moments(
        folder / "optimizer.safetensors",
        shard.fetch(state.opt_state),
        base=source.sha256_of(partial / _WEIGHTS),
        **betas,
    )
    shutil.rmtree(model, ignore_errors=True)
    os.replace(partial, model)


def pretraining_passport(
    work: Pretraining, study: Any, results: Mapping[str, Mapping[str, Any]], folder: Path
) -> dict[str, Any]:
    """Return the passport of a finished base: its `base.sha256` is what later studies' passports say of their base."""
    base = {"name": folder.name, "sha256": source.sha256_of(folder / "model" / _WEIGHTS), "made": "here"}
    return finished_passport(study, results, folder, base=base, corpora=work.corpora)
