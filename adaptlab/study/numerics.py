"""One adaptation on several meshes, device orders, precisions and initialisations: how far do the runs part?

Every arm is trained from the same seeds on the same batches as the reference. At each measurement s its update ΔW(s),
the change of every weight matrix, is compared with that of the reference's run of the same seed:

    d(s) = ‖ΔW(s) - ΔW_ref(s)‖_F / ‖ΔW_ref(s)‖_F        `parting/update`, over all layers' kernels together, in float64

The reference's updates are kept in `runs/reference/…/path/`, so that any arm can be resumed or added later.
"""

import contextlib
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from adaptlab import adapt, config, hosts, measure, report, shard
from adaptlab.measure.update import updates
from adaptlab.study import kept_updates as kept
from adaptlab.study.folder import write_json
from adaptlab.study.lab import Lab, open_base
from adaptlab.study.members import Member, members
from adaptlab.study.probes import run_probe
from adaptlab.study.programs import training_program
from adaptlab.train import Program, Run, Writer, compile_program, device_numbers, fit, open_checkpoints

__all__ = ["REFERENCE", "Arm", "between_seeds", "check_devices", "make_arms", "part_of_devices", "run_arms"]

log = logging.getLogger(__name__)

REFERENCE = "reference"
Order = Literal["natural", "reversed", "interleaved"]


class Arm(NamedTuple):
    """One way of computing the same adaptation.

    Attributes:
      name: "reference", or the arm's.
      base: the config of the base; its `model.dtype` is what is computed in.
      mesh: the config of the devices, see `part_of_devices`.
      precision: of matrix products, as of `jax.default_matmul_precision`; None is the backend's own.
      members: its runs, one for each seed.
    """

    name: str
    base: Mapping[str, Any]
    mesh: Mapping[str, Any]
    precision: str | None
    members: list[Member]


def part_of_devices(
    *,
    data: int = 1,
    fsdp: int = 1,
    tensor: int = 1,
    expert: int = 1,
    context: int = 1,
    stage: int = 1,
    order: Order = "natural",
) -> jax.sharding.Mesh:
    """Return a mesh over as many devices as its sizes ask for, in an order.

    Args:
      data, fsdp, tensor, expert, context, stage: see `adaptlab.shard.make_mesh`.
      order: "natural" is JAX's, "reversed" the other way round, "interleaved" every second device first.

    Raises:
      ValueError: JAX sees fewer devices; says how to have more on a CPU.
    """
    sizes = {"data": data, "fsdp": fsdp, "tensor": tensor, "expert": expert, "context": context, "stage": stage}
    wanted, devices = math.prod(sizes.values()), jax.devices()
    _enough(" x ".join(f"{axis}={size}" for axis, size in sizes.items() if size != 1), wanted)
    devices = devices[:wanted]
    ordered = {"natural": devices, "reversed": devices[::-1], "interleaved": devices[::2] + devices[1::2]}
    return shard.make_mesh(**sizes, devices=ordered[order])


def _enough(said: str, wanted: int) -> None:
    if wanted > (there := jax.device_count()):
        raise ValueError(
            f"{said} needs {wanted} devices and JAX sees {there} ({jax.devices()[0].platform}). On a CPU, start with "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted} in the environment; or leave the arm out with "
            f"~arms.NAME."
        )


def make_arms(recipe: Mapping[str, Any], arms: Mapping[str, Any], seeds: Sequence[int]) -> list[Arm]:
    """Return the reference and the arms: the recipe with what is different in each.

    Args:
      recipe: `base`, `mesh`, `precision`, `adapt` and `optim`.
      arms: `{name: changes}`.
      seeds: one run each.

    Raises:
      ConfigError: an arm that is called reference, or whose changes do not fit the recipe.
    """
    if REFERENCE in arms:
        raise config.ConfigError(f"arms.{REFERENCE}: that is what all arms are compared with; choose another name.")
    found = []
    for name, changes in {REFERENCE: {}, **arms}.items():
        if unknown := sorted(set(changes) - set(recipe)):
            raise config.ConfigError(f"arms.{name}: {unknown} are none of {sorted(recipe)}.")
        node = config.merge(recipe, changes, f"arms.{name}")
        runs = members({name: {part: node[part] for part in ("adapt", "optim")}}, seeds)
        found.append(Arm(name, node["base"], node["mesh"], node["precision"], runs))
    return found


def check_devices(arms: Sequence[Arm]) -> None:
    """Refuse, before anything is loaded, what needs more devices than there are.

    Raises:
      ValueError: names the arm, and how to have more devices on a CPU.
      ConfigError: the study was started as several processes: arms use parts of the devices.
    """
    if hosts.count() > 1:
        raise config.ConfigError(
            "numerics compares meshes of parts of the devices, and runs in one process: hosts=single."
        )
    for arm in arms:
        sizes = {key: value for key, value in arm.mesh.items() if isinstance(value, int)}
        _enough(f"arms.{arm.name}: mesh {sizes}", math.prod(sizes.values()))


def run_arms(lab: Lab, arms: Sequence[Arm], folder: Path, wandb: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Run what has not finished, the reference first, and return `{run: result}`.

    Args:
      lab: the reference's.
      arms: see `make_arms`.
      folder: the study's.
      wandb: the settings of the W&B mirror, see `Wandb`.
    """
    results = {}
    for arm in arms:
        waiting = [member for member in arm.members if not _result(folder, member).exists()]
        precise = jax.default_matmul_precision(arm.precision) if arm.precision else contextlib.nullcontext()
        with precise:
            runner = _Runner(_elsewhere(lab, arm), arm, folder, wandb) if waiting else None
            for member in waiting:
                assert runner is not None
                runner.run(member)
        results |= {member.name: json.loads(_result(folder, member).read_text()) for member in arm.members}
    return results


def between_seeds(folder: Path, arms: Sequence[Arm]) -> dict[int, list[float]]:
    """Return `{step: d of every two seeds of the reference}`: how far another seed takes the update."""
    paths = [folder / "runs" / member.name / "path" for member in arms[0].members]
    found: dict[int, list[float]] = {}
    for step in sorted(int(file.stem) for file in paths[0].glob("*.npz")):
        loaded = [kept.load(path / f"{step}.npz") for path in paths]
        pairs = [(a, b) for i, a in enumerate(loaded) for b in loaded[i + 1 :]]
        found[step] = [kept.apart(a, b) for a, b in pairs]
    return found


def _result(folder: Path, member: Member) -> Path:
    return folder / "runs" / member.name / "result.json"


def _elsewhere(lab: Lab, arm: Arm) -> Lab:
    """The lab with the base and the held-out text on the arm's devices, computed in the arm's way."""
    pretrained, placement, params = open_base(arm.base, config.instantiate(arm.mesh))
    tokenizer = config.instantiate(arm.base["tokenizer"])
    moved = lab._replace(
        base=arm.base,
        pretrained=pretrained,
        params=params,
        placement=placement,
        measurement=measure.held_out_text(pretrained.model, tokenizer.token_bytes_V),
    )
    held_out = {name: [moved.put(shard.fetch(batch)) for batch in batches] for name, batches in lab.held_out.items()}
    return moved._replace(held_out=held_out)


class _Runner:
    """The runs of an arm: one program, compiled once."""

    def __init__(self, lab: Lab, arm: Arm, folder: Path, wandb: Mapping[str, Any]) -> None:
        self.lab, self.arm, self.folder, self.wandb = lab, arm, folder, wandb
        one = arm.members[0]
        program = training_program(lab, one)
        scalars = device_numbers(one.numbers, one.seed, lab.params)
        self.base = program.prepare(scalars[0], lab.params)
        self.compiled = compile_program(program, *scalars, self.base, lab.placed_batches(one.seed)(0))
        self.held_out, self.update = run_probe(lab, program, self.base), _update(program)
        log.info("%s: compiled in %.1f s", arm.name, self.compiled.seconds)

    def run(self, member: Member) -> None:
        home, training = self.folder / "runs" / member.name, self.lab.training
        home.mkdir(parents=True, exist_ok=True)
        checkpoints = open_checkpoints(home / "checkpoints", keep=training.keep)
        probe = _Probe(self, member, home)
        sinks: list[report.Sink] = []

        def open_writer(step: int) -> Writer:
            probe.step = step
            report.truncate_journal(home / "journal.jsonl", step)
            sinks.append(report.tee(report.journal(home / "journal.jsonl"), *self.mirrors(member, home)))
            return Writer(sinks[0].write, sinks[0].flush)

        run = Run(
            program=self.compiled.program,
            numbers=member.numbers,
            seed=member.seed,
            base=self.base,
            batches=self.lab.placed_batches(member.seed),
            probe=probe,
            total_steps=self.lab.total_steps,
            measure_every=training.measure_every,
            save_every=training.save_every,
        )
        try:
            fitted = fit(run, checkpoints, open_writer)
        finally:
            checkpoints.close()
            for sink in sinks:
                sink.close()
        saved = {"adapt": member.adapt, "base": self.lab.pretrained.fingerprint}
        digest = adapt.save_delta(home / "delta.safetensors", shard.fetch(fitted.delta), **saved)
        about = {"method": member.method, "lr": member.lr, "seed": member.seed, "steps": self.lab.total_steps}
        mesh = {axis: size for axis, size in self.lab.placement.mesh.shape.items() if size > 1}
        last = {"target_loss": probe.last, "diverged_at": fitted.diverged_at, "delta_digest": digest, "mesh": mesh}
        write_json(home / "result.json", about | last)
        shutil.rmtree(home / "checkpoints", ignore_errors=True)

    def mirrors(self, member: Member, home: Path) -> list[report.Sink]:
        name, settings = f"{self.folder.name}/{member.name}", {"arm": self.arm.name, "seed": member.seed}
        where = {"dir": home, "mode": self.wandb["mode"], "tags": self.wandb["tags"]}
        return [
            report.progress(name, self.lab.total_steps, self.lab.target),
            report.wandb_sink(self.wandb["project"], name=name, group=self.folder.name, config=settings, **where),
        ]


class _Probe:
    """Measures held-out text and the update; keeps the reference's updates, and compares the others' with them."""

    def __init__(self, runner: _Runner, member: Member, home: Path) -> None:
        self.runner, self.member, self.home = runner, member, home
        self.step, self.last = 0, math.nan

    def __call__(self, numbers: Any, base: Any, delta: Any) -> dict[str, float]:
        lab, every = self.runner.lab, self.runner.lab.training.measure_every
        step = min(-(-self.step // every) * every, lab.total_steps)  # the course does not say where it measures
        self.step = step + 1
        found = self.runner.held_out(numbers, base, delta)
        self.last = found[f"held_out/{lab.target}/loss"]
        with jax.transfer_guard("allow"):
            update = {path: kept.arrays(one) for path, one in self.runner.update(numbers, base, delta).items()}
        if self.runner.arm.name == REFERENCE:
            kept.save(self.home / "path" / f"{step}.npz", update)
            return found
        reference = self.runner.folder / "runs" / self.member.name.replace(self.member.method, REFERENCE, 1)
        distance = kept.apart(kept.dense(update), kept.load(reference / "path" / f"{step}.npz"))
        return found | ({} if math.isnan(distance) else {"parting/update": distance})


def _update(program: Program) -> Callable[..., Any]:
    return jax.jit(lambda numbers, base, delta: updates(base, program.bind(numbers, base, delta)))
