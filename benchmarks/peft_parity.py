"""Do adaptlab and PEFT compute the same with one adapter? Writes docs/peft.md.

    python -m benchmarks.peft_parity --torch PYTHON [--out docs/peft.md]

`--torch` names a Python with torch, transformers and peft; there, `tests/golden/peft_folders.py` makes tiny random
models and an adapter of each of PEFT's methods, and computes their logits and gradients. Here the adapters are read,
and deltas of adaptlab's own with noise in every array are saved for PEFT and computed there. Differences are the
largest over all logits, relative to the largest logit, and over the gradients of the cross-entropy in the adapter's
arrays, relative to the largest gradient, in float32.
"""

import argparse
import json
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from adaptlab.adapt import peft
from tests.golden import peft_folders, peft_ours

WORKER = Path(peft_folders.__file__)
BOUND = 1e-5

HEAD = """# Exchange with PEFT

`python -m scripts.peft base=… delta=FILE out=FOLDER` writes a saved delta as a folder that PEFT's
`PeftModel.from_pretrained` reads, `adapter=FOLDER out=FILE` reads such a folder, and `scripts.evaluate` takes either as
its `delta`. A folder has the names and shapes of `save_pretrained` of PEFT {peft}.

{made}

"Export" is: a delta of adaptlab's, with noise in every array, is saved and read by PEFT, which computes its logits and
gradients; "import": an adapter of PEFT's is read by adaptlab. |Δlogits| and |Δgradient| are the largest differences in
float32, relative to the largest logit and the largest gradient; the gradients are those of the cross-entropy in all
arrays of the adapter.

"""

NOTES = """
## What is exchanged as what

- `lora` of several ranks or scales (`chain`, `partition`, `layer_ranks`) is one LoRA with `rank_pattern` and
  `alpha_pattern`; scales of single layers go into B.
- `pissa` is exported as LoRA of twice the rank, W + s A B - A₀ B₀ exactly. An adapter with
  `init_lora_weights="pissa"` comes back as `pissa`.
- GPT-2's query, key and value are one `c_attn` there. LoRA, DoRA and AdaLoRA are exported exactly, with the parts'
  ranks side by side and B block by block, so of up to three times the rank. An adapter of `c_attn` gives all three
  parts a copy of its A: the same model, in which the copies train apart. VeRA of `c_attn` is read as the LoRA that it
  equals and not written; PiSSA of it is not read.
- `vera` is exported with its random matrices in the file. Those of PyTorch's generator cannot be made again here: such
  an adapter is read as the LoRA that it equals.
- `adalora` becomes an AdaLoRA that drops no more ranks; ranks that PEFT dropped come back as zeros.
- `prefix` with a network, and `p_tuning`, are exported as the keys and values, or the prompt, that the network makes:
  PEFT too stores only these.
- `textual_inversion` of given tokens is TRAINABLE_TOKENS; new tokens need a base with a longer table first.
- `lora` of a table that is the head too: in a Llama `ensure_weight_tying`; in GPT-2 `wte` and `lm_head` are two targets
  with the same arrays, which would train apart in PEFT.
- `layer_norm` is LN_TUNING, and beside another method `modules_to_save`.
- `selected`, `linear_probe` and `full` of whole modules, beside another method, are `modules_to_save`. A classifier is
  always saved, as PEFT does.
- `prompt` and `p_tuning` in front of a classifier are an error: PEFT pools the prompt's first position, and adaptlab
  the text's first token.
- Bottleneck adapters, compacter, diff pruning, BitFit, random subspaces and fusion are not in PEFT: keep the delta as
  `save_delta` wrote it.

Behind a prefix of P positions the text's first position is P, in both: its keys and values stand where P tokens would
(arXiv:2101.00190, sec. 4.1).
"""


def torch(python: str, command: str, folder: Path) -> None:
    subprocess.run([python, str(WORKER), command, str(folder)], check=True, capture_output=True)


def imported(folder: Path) -> dict[str, tuple[str, float, float]]:
    """Read every adapter that PEFT made: its type, and the differences of logits and gradients."""
    bases, found = {}, {}
    for adapter in sorted(path.parent for path in folder.glob("*/adapter_config.json")):
        family = adapter.name.partition("-")[0]
        base = bases.setdefault(family, peft_ours.opened(folder / "base" / family))
        theirs = dict(np.load(adapter / "reference.npz"))
        apart = peft_ours.distances(peft_ours.computed(base, adapter), theirs, tied="head" not in base.params)
        found[adapter.name] = (json.loads((adapter / peft.CONFIG).read_text())["peft_type"], *apart)
    return found


def exported(folder: Path, python: str) -> dict[str, tuple[str, str, float, float]]:
    """Save deltas for PEFT: the method, PEFT's type, and the differences of logits and gradients."""
    bases, logits, found = {}, {}, {}
    for case, node in peft_ours.EXPORTS.items():
        family = case.partition("-")[0]
        base = bases.setdefault(family, peft_ours.opened(folder / "base" / family))
        saved = peft_ours.drawn(base, node)
        peft.save_peft(folder / case, saved, base.params, base.checkpoint, **base.given)
        logits[case] = peft_ours.logits_with(base, saved, family, typed="-prompt" not in case)
    torch(python, "run", folder)
    for case, (kind, _, gradients) in imported(folder).items():
        theirs = np.load(folder / case / "reference.npz")["logits"]
        apart = float(np.abs(logits[case] - theirs).max() / np.abs(theirs).max())
        found[case] = (_method(peft_ours.EXPORTS[case]), kind, apart, gradients)
    return found


def _method(node: dict[str, Any]) -> str:
    name = node["_target_"].rpartition(".")[2]
    below = node.get("stages", node.get("parts"))
    return f"`{name}`" if below is None else " + ".join(dict.fromkeys(_method(one) for one in below.values()))


def table(rows: list[tuple[Any, ...]], columns: str) -> str:
    lines = [f"| {columns} |", "|---" * (columns.count(" | ") + 1) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(map(str, row)) + " |" for row in rows)]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", metavar="PYTHON", required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/peft.md"))
    o = parser.parse_args()
    query = "import peft, torch, transformers; print(peft.__version__, torch.__version__, transformers.__version__)"
    versions = subprocess.run([o.torch, "-c", query], check=True, capture_output=True, text=True).stdout.split()
    with tempfile.TemporaryDirectory() as folder:
        made, ours = Path(folder) / "theirs", Path(folder) / "ours"
        torch(o.torch, "make", made)
        read = imported(made)
        (ours / "base").parent.mkdir()
        (made / "base").rename(ours / "base")
        written = exported(ours, o.torch)
    worst = max([x for row in read.values() for x in row[1:]] + [x for row in written.values() for x in row[2:]])
    first = f"Written by `python -m benchmarks.peft_parity` with jax {version('jax')}, peft {versions[0]}, torch "
    first += (
        f"{versions[1]} and transformers {versions[2]}, over tiny random models. The largest difference is {worst:.0e}."
    )
    number = "{:.0e}".format
    exports = [(c.replace("-", ": "), m, k, number(x), number(g)) for c, (m, k, x, g) in sorted(written.items())]
    imports = [(c.replace("-", ": "), k, number(x), number(g)) for c, (k, x, g) in sorted(read.items())]
    text = HEAD.format(peft=versions[0], made=first)
    text += "## Export\n\n" + table(exports, "model: case | method | PEFT's type | \\|Δlogits\\| | \\|Δgradient\\|")
    text += "\n## Import\n\n" + table(imports, "model: case | PEFT's type | \\|Δlogits\\| | \\|Δgradient\\|")
    o.out.write_text(text + NOTES)
    print(f"{o.out}: {len(read)} imports, {len(written)} exports, largest difference {worst:.1e}")
    if worst > BOUND:
        raise SystemExit(f"A difference above {BOUND}.")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
