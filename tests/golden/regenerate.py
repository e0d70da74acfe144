"""Write the golden values of the long texts again: `python -m tests.golden.regenerate` (needs the `reference` extra).

They come from transformers, not from adaptlab, so that running this cannot make a wrong model right. The short texts'
values (`smollm2_short.npz`) were made elsewhere, by transformers 5.23.0 on torch 2.13.0 reading the GGUF file itself,
and are not regenerated.
"""

import tempfile
from pathlib import Path

import numpy as np

from tests.golden.smollm2 import COLUMNS, LOGITS, LONG, base, log_probabilities, texts, their_logits


def main() -> None:
    names = list(texts())
    ids = base()[2].encode(list(texts().values()))
    with tempfile.TemporaryDirectory() as folder:
        logits = their_logits(ids, Path(folder))
    stored = {}
    for name, tokens, logits_TV in zip(names, ids, logits, strict=True):
        margin = np.diff(np.sort(logits_TV, axis=-1)[:, -2:]).min()
        print(f"{name}: {len(tokens)} tokens, the closest call between two tokens is {margin:.4f}")
        if margin < 2 * LOGITS:
            raise SystemExit(f"{name}: rounding could change the most probable token; choose another text.")
        stored |= {
            f"{name}/ids": tokens,
            f"{name}/argmax": logits_TV.argmax(-1).astype(np.int32),
            f"{name}/log_probabilities": log_probabilities(logits_TV, tokens),
            f"{name}/some_logits": logits_TV[:, COLUMNS],
        }
    stored["german/last_logits"] = logits[names.index("german")][-1]
    np.savez_compressed(LONG, **stored)
    print(f"{LONG}: {LONG.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
