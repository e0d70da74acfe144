"""The loss of a base, with or without a saved adapter, on a text file, as one JSON line.

    python -m scripts.evaluate base=smollm2 text=FILE [delta=PATH] [length=1024] [split=file]

`tokens` is the number of predicted tokens: all but the first of each document. `loss` is in nats per token;
`bits_per_byte` divides by the UTF-8 bytes of the predicted tokens. A text longer than `length` is read in windows of
`length` tokens, each predicted from the tokens before it in its window.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adaptlab as al


@dataclass
class Evaluation:
    """The keys of conf/evaluate.yaml.

    Attributes:
      base: the pretrained model.
      text: a UTF-8 text file.
      delta: a saved delta to bind, or a folder of PEFT's with an adapter; null for the base itself.
      length: tokens per window.
      batch_size: windows per forward pass.
      split: what is one document: the whole "file", a "paragraph" or a "line".
      mesh: the devices.
    """

    base: "al.study.Base"
    text: str
    delta: str | None
    length: int
    batch_size: int
    split: str
    mesh: dict[str, Any]


def evaluate(job: Evaluation) -> dict[str, Any]:
    """Return the metrics of `adaptlab.measure.held_out_text` on the text, and what they are of."""
    tokenizer = al.config.instantiate(job.base["tokenizer"])
    corpus = al.data.local_text(job.text, split=job.split)
    documents = tokenizer.encode(list(corpus.documents))
    longest = max(map(len, documents)) - 1
    pretrained, _, params = al.study.open_base(job.base, al.config.instantiate(job.mesh))
    # One window holds a short text; lengths are rounded up so that texts of similar length share a program.
    length = min(job.length, pretrained.context, max(64, -(-longest // 64) * 64))
    packed = al.data.pack(documents, length)
    batches = al.data.fixed_batches(packed, min(job.batch_size, len(packed.tokens)))
    if job.delta is not None:
        model, peft = pretrained.model, al.adapt.peft
        if peft.is_peft(job.delta):
            checkpoint = peft.Checkpoint(*al.models.names.hf_names(al.config.instantiate(job.base["weights"]), params))
            saved = peft.load_peft(job.delta, params, checkpoint, pretrained.fingerprint)
        else:
            saved = al.adapt.load_delta(job.delta, base=pretrained.fingerprint)
        adaptation = peft.built(saved.adapt, fresh=model.init, slots=model.slots())
        params = adaptation.bind(al.adapt.prepared(adaptation, params), saved.delta)
    probe = al.measure.make_probe(
        al.measure.held_out_text(pretrained.model, tokenizer.token_bytes_V), {"text": batches}
    )
    metrics = {name.removeprefix("text/"): value for name, value in probe(params).items()}
    metrics["tokens"] = int(metrics["tokens"])
    return {"base": pretrained.name, "delta": job.delta, "text": job.text, "length": length, **metrics}


@al.config.main("evaluate", Evaluation)
def main(node: dict[str, Any], folder: Path) -> None:
    """Print the metrics as one JSON line."""
    al.runtime.configure()
    print(json.dumps(evaluate(Evaluation(**node))))


if __name__ == "__main__":
    main()
