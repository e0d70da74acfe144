"""Merge saved deltas of one base into one saved delta, and print what it is as one JSON line.

    python -m scripts.merge method=ties 'deltas=[a.safetensors,b.safetensors]' 'weights=[1,1]' out=merged.safetensors

What is merged is chosen by `space`:

    weights   the differences of the whole models from the base, however each was adapted; the result is a delta of
              full fine-tuning, of the size of the base
    delta     the arrays of the deltas, which must be of one adaptation; the result is a delta of it
    factors   low-rank updates, added exactly by concatenating their factors, for a method that is a weighted sum; the
              result is a LoRA of the sum of the ranks

With `greedy=FILE`, a held-out text, models are averaged one after another, best first, and one that would raise the
loss on the text is left out.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import adaptlab as al


@dataclass
class Merging:
    """The keys of conf/merge.yaml.

    Attributes:
      base: the pretrained model.
      method: how to merge, see `adaptlab.adapt.merge`.
      deltas: saved deltas of the base.
      out: where the result is saved, a `.safetensors` file.
      weights: one for each delta; null is 1.
      space: what is merged: "weights", "delta" or "factors".
      greedy: a text file whose loss says which models are averaged at all (a greedy soup), or null.
      seed: of what the method draws.
      mesh: the devices.
    """

    base: "al.study.Base"
    method: dict[str, Any]
    deltas: list[str]
    out: str
    weights: list[float] | None
    space: Literal["weights", "delta", "factors"]
    greedy: str | None
    seed: int
    mesh: dict[str, Any]


def merge(job: Merging) -> dict[str, Any]:
    """Merge, save, and return what was made of what.

    Raises:
      ConfigError: weights that do not fit the deltas, other adaptations in the space of deltas, a method that is not a
        weighted sum in the space of factors, or a greedy soup of anything but the plain average of models.
      ValueError: a delta that is damaged or of another base.
    """
    method = al.config.instantiate(job.method)
    weights = job.weights or [1.0] * len(job.deltas)
    if not job.deltas or len(weights) != len(job.deltas):
        raise al.config.ConfigError(
            f"weights={job.weights} for {len(job.deltas)} deltas: give deltas, and one weight for each."
        )
    if job.space == "factors" and method.coefficients is None:
        raise al.config.ConfigError(
            f"space=factors adds low-rank updates exactly, and {job.method['_target_']} is not a weighted sum: choose "
            f"space=weights, or method=average or method=task_arithmetic."
        )
    if job.greedy and (job.space != "weights" or job.weights or not job.method["_target_"].endswith(".average")):
        raise al.config.ConfigError(
            f"greedy={job.greedy!r} chooses what to average: it goes with method=average, space=weights and no weights."
        )
    pretrained = al.config.instantiate(job.base["model"])
    saved = [al.adapt.load_delta(path, base=pretrained.fingerprint) for path in job.deltas]
    if job.space == "delta" and (
        odd := [p for p, s in zip(job.deltas, saved, strict=True) if s.adapt != saved[0].adapt]
    ):
        raise al.config.ConfigError(
            f"space=delta merges deltas of one adaptation: {odd} are not of that of {job.deltas[0]}, {saved[0].adapt}; "
            f"choose space=weights."
        )
    delta, adapt, weights = _merged(job, method, weights, saved)
    digest = al.adapt.save_delta(job.out, delta, adapt=adapt, base=pretrained.fingerprint)
    parameters = al.tree.count(delta)
    return {"out": job.out, "deltas": job.deltas, "weights": weights, "parameters": parameters, "digest": digest}


def _merged(job: Merging, method: Any, weights: list[float], saved: list[Any]) -> tuple[Any, dict[str, Any], Any]:
    """Return the delta, the config of its adaptation, and the weights that it has."""
    pretrained, _, base = al.study.open_base(job.base, al.config.instantiate(job.mesh))
    given = {"fresh": pretrained.model.init, "slots": pretrained.model.slots()}
    if job.space == "delta":
        adaptation = al.config.instantiate(saved[0].adapt, **given)
        prepared = al.adapt.prepared(adaptation, base)
        deltas = [one.delta for one in saved]
        return al.adapt.merge.merge_deltas(method, prepared, deltas, weights, job.seed), saved[0].adapt, weights

    def bound(one: Any) -> Any:
        adaptation = al.config.instantiate(one.adapt, **given)
        return adaptation.bind(al.adapt.prepared(adaptation, base), one.delta)

    models = [bound(one) for one in saved]
    if job.space == "factors":
        return *al.adapt.merge.concatenated(base, models, method.coefficients(weights)), weights
    full = {"_target_": "adaptlab.adapt.full"}
    if job.greedy:
        models = [al.adapt.materialize(model) for model in models]
        soup, members = al.adapt.merge.greedy_soup(models, _loss_on(job, pretrained))
        return soup, full, [float(i in members) for i in range(len(models))]
    return al.adapt.merge.merge_weights(method, base, models, weights, job.seed), full, weights


def _loss_on(job: Merging, pretrained: Any) -> Any:
    """Return `model -> loss` in nats per token on the text that decides."""
    tokenizer = al.config.instantiate(job.base["tokenizer"])
    documents = tokenizer.encode(list(al.data.local_text(job.greedy, split="paragraph").documents))
    packed = al.data.pack(documents, min(256, pretrained.context))
    batches = al.data.fixed_batches(packed, min(4, len(packed.tokens)))
    measurement = al.measure.held_out_text(pretrained.model, tokenizer.token_bytes_V)
    probe = al.measure.make_probe(measurement, {"text": batches})
    return lambda model: probe(model)["text/loss"]


@al.config.main("merge", Merging)
def main(node: dict[str, Any], folder: Path) -> None:
    """Print what was merged as one JSON line."""
    al.runtime.configure()
    print(json.dumps(merge(Merging(**node))))


if __name__ == "__main__":
    main()
