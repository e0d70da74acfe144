"""Choose the weights of largest Fisher information, by a corpus's training text, and save them as a mask.

    python -m scripts.fisher_mask base=smollm2 domain@target=german_speeches density=0.005 out=mask.safetensors
    python -m experiments.forgetting adapt@methods.lora.adapt=fisher_masked methods.lora.adapt.mask=mask.safetensors

The text is what a study with these settings trains on; held-out text is never seen. Prints one JSON line.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import adaptlab as al


@dataclass
class Masking:
    """The keys of conf/fisher_mask.yaml.

    Attributes:
      base: the pretrained model.
      target: the corpus to adapt to.
      out: where the mask is saved, a `.safetensors` file.
      density: the share of the weights on offer that is chosen.
      select: patterns of the paths on offer.
      scope: the largest of "all" together or of each "tensor".
      gradients: "example" squares the gradient of every row (the empirical Fisher information), "batch" that of every
        batch, which is cheaper and something else.
      batches: how many batches of training text.
      seed: of their order.
      training: how the text is cut, as in the study the mask is for.
      held_out: the text that is left out, as in the study.
      mesh: the devices.
      upstream: nothing: a mask needs no other corpora.
    """

    base: "al.study.Base"
    target: dict[str, Any]
    out: str
    density: float
    select: str | list[str]
    scope: Literal["all", "tensor"]
    gradients: Literal["example", "batch"]
    batches: int
    seed: int
    training: dict[str, Any]
    held_out: dict[str, Any]
    mesh: dict[str, Any]
    upstream: dict[str, Any]


def fisher_mask(job: Masking) -> dict[str, Any]:
    """Compute the diagonal, choose, save, and return what was chosen."""
    lab = al.study.open_lab(job)
    stream = lab.batches(job.seed)
    batches = (lab.put(stream(step)) for step in range(job.batches))
    of = al.measure.fisher_diagonal if job.gradients == "example" else al.measure.squared_batch_gradients
    loss = al.models.language_modelling(lab.pretrained.model)
    fisher = of(loss, lab.params, batches, al.rng.key_for(job.seed, "fisher"))
    mask = al.adapt.fisher_mask(fisher, job.density, select=job.select, scope=job.scope)
    made = {key: getattr(job, key) for key in ("target", "density", "select", "scope", "gradients", "batches", "seed")}
    digest = al.adapt.save_mask(job.out, mask, made=made, base=lab.pretrained.fingerprint)
    chosen = {path: int(x.shape[0]) for path, x in al.tree.flatten(mask).items()}
    return {"out": job.out, "weights": sum(chosen.values()), "chosen": chosen, "digest": digest}


@al.config.main("fisher_mask", Masking)
def main(node: dict[str, Any], folder: Path) -> None:
    """Print what was chosen as one JSON line."""
    al.runtime.configure()
    print(json.dumps(fisher_mask(Masking(**node))))


if __name__ == "__main__":
    main()
