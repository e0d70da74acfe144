"""Exchange saved deltas with Hugging Face PEFT, and print what was written as one JSON line.

    python -m scripts.peft base=smollm2 delta=a.safetensors out=FOLDER [name=HuggingFaceTB/SmolLM2-135M-Instruct]
    python -m scripts.peft base=smollm2 adapter=FOLDER out=a.safetensors

The first writes adapter_config.json and adapter_model.safetensors, which PEFT's `PeftModel.from_pretrained` reads; the
second reads them. docs/peft.md lists the methods that both have. `scripts.evaluate` takes either as its `delta`.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adaptlab as al


@dataclass
class Exchange:
    """The keys of conf/peft.yaml.

    Attributes:
      base: the pretrained model.
      delta: a saved delta of it, to export; or null.
      adapter: a folder of PEFT's, to import; or null.
      out: the folder, or the `.safetensors` file, that is written.
      name: the folder or repository that PEFT's users load the base from; null leaves it open.
      mesh: the devices.
    """

    base: "al.study.Base"
    delta: str | None
    adapter: str | None
    out: str
    name: str | None
    mesh: dict[str, Any]


def exchange(job: Exchange) -> dict[str, Any]:
    """Export or import, and return what was written.

    Raises:
      ConfigError: neither or both of `delta` and `adapter` are given, or `out` is of the other kind.
      ValueError: PEFT or adaptlab does not have the method, or the delta is of another base.
    """
    peft = al.adapt.peft
    if (job.delta is None) == (job.adapter is None):
        raise al.config.ConfigError(
            f"delta={job.delta}, adapter={job.adapter}: give the saved delta to export, or the folder to import."
        )
    if job.out.endswith(".safetensors") != (job.delta is None):
        raise al.config.ConfigError(
            f"out={job.out}: a saved delta is exported to a folder, and a folder imported to a .safetensors file."
        )
    if job.adapter is not None and not peft.is_peft(job.adapter):
        raise al.config.ConfigError(f"adapter={job.adapter} is not a folder with {peft.CONFIG}.")
    saved = None if job.delta is None else al.adapt.load_delta(job.delta)  # before the base, which takes longer
    pretrained, _, params = al.study.open_base(job.base, al.config.instantiate(job.mesh), **_head(job, saved))
    rows, task = al.models.names.hf_names(al.config.instantiate(job.base["weights"]), params)
    checkpoint = peft.Checkpoint(rows, task, job.name)
    if job.adapter is not None:
        saved = peft.load_peft(job.adapter, params, checkpoint, pretrained.fingerprint)
        digest = al.adapt.save_delta(job.out, saved.delta, adapt=saved.adapt, base=saved.base)
        return {"out": job.out, "adapt": saved.adapt, "parameters": al.tree.count(saved.delta), "digest": digest}
    saved = al.adapt.load_delta(str(job.delta), base=pretrained.fingerprint)
    given = {"fresh": pretrained.model.init, "slots": pretrained.model.slots()}
    said = peft.save_peft(job.out, saved, params, checkpoint, **given)
    return {"out": job.out, "peft_type": said["peft_type"], "task_type": task, "delta": saved.digest}


def _head(job: Exchange, saved: Any) -> dict[str, int]:
    """The classes of the head that what is exchanged was trained with, for a base that is opened with one."""
    if saved is not None:
        biases = [x for path, x in al.tree.flatten(saved.delta).items() if path.endswith("classifier/bias")]
        return {"classes": len(biases[0])} if biases else {}
    classes = al.adapt.peft.classes_of(str(job.adapter))
    return {} if classes is None else {"classes": classes}


@al.config.main("peft", Exchange)
def main(node: dict[str, Any], folder: Path) -> None:
    """Print what was written as one JSON line."""
    al.runtime.configure()
    print(json.dumps(exchange(Exchange(**node))))


if __name__ == "__main__":
    main()
