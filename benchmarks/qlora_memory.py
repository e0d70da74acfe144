"""How much memory does a training step need? Full fine-tuning, LoRA, and LoRA over a quantised base.

    python -m benchmarks.qlora_memory [--width 2048 --depth 22 …] [--batch 1] [--length 512] [--dtype bfloat16]

Nothing runs: the step (AdamW, clipping) is compiled for abstract weights, and the numbers are the compiler's own
account of it on this backend, in GiB. The default sizes are TinyLlama's, 1.1 billion parameters. `base` is what the
base takes, `trained` the trained weights and their two moments, `temporary` what exists during the step only, and
`peak` everything (full fine-tuning drops its base once it has begun). The last columns divide LoRA's base and peak over
float32 weights, and its base over bfloat16 weights, by this row's: above 1, smaller. Embedding, head and norms stay in
float32, as in QLoRA. There is no column for the peak against bfloat16: a CPU computes that in float32, and XLA widens
the whole base for it at once, which is the large `temporary` of that row and says nothing about accelerators.
"""

import argparse
import platform
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from adaptlab import adapt, models, optim, train, tree
from adaptlab.data import Batch

GIB = 2.0**30
SCHEMES = {
    "full": None,
    "lora": None,
    "lora, bfloat16 base": None,
    "qlora int8": models.Quantization("int8"),
    "qlora nf4": models.Quantization("nf4", double=False),
    "qlora nf4, double": models.Quantization("nf4"),
}


def base_of(side: str, model: models.Model) -> Any:
    """The base as shapes."""
    params = jax.eval_shape(model.init, jax.random.key(0))
    if "bfloat16" in side:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    how = SCHEMES[side]
    return params if how is None else jax.eval_shape(lambda p: models.quantize(p, how), params)


def memory(side: str, model: models.Model, batch: Batch) -> dict[str, int]:
    program = train.make_program(
        lambda numbers: models.language_modelling(model),
        lambda numbers: adapt.full() if side == "full" else adapt.lora(8),
        lambda numbers: optim.adamw(numbers["lr"], total_steps=1000, clip=1.0),
    )
    numbers, seed = train.device_numbers({"lr": 1e-4}, 0)
    base = base_of(side, model)
    state = jax.eval_shape(program.init, numbers, seed, base)
    used = program.step.lower(numbers, seed, state, base, batch).compile().memory_analysis()
    peak = used.argument_size_in_bytes + used.output_size_in_bytes + used.temp_size_in_bytes - used.alias_size_in_bytes
    return {
        "base": tree.nbytes(base),
        "trained": tree.nbytes(state),
        "temporary": used.temp_size_in_bytes,
        "peak": peak,
    }


def table_of(rows: dict[str, dict[str, int]]) -> Table:
    columns = ["base", "trained", "temporary", "peak"]
    against = {"base, f32 /": ("lora", "base"), "peak, f32 /": ("lora", "peak")}
    against["base, bf16 /"] = ("lora, bfloat16 base", "base")
    table = Table("GiB", *columns, *against)
    for side, row in rows.items():
        ratios = [rows[other][key] / row[key] for other, key in against.values()]
        table.add_row(side, *[f"{row[k] / GIB:.3f}" for k in columns], *[f"{r:.2f}" for r in ratios])
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"vocab-size": 32000, "width": 2048, "depth": 22, "heads": 32, "kv-heads": 4, "ffn-width": 5632}
    for name, default in (sizes | {"batch": 1, "length": 512}).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="float32", help="what is computed in")
    parser.add_argument("--remat", default="full", choices=sorted(models.REMAT_POLICIES))
    o = parser.parse_args()
    shape = models.LlamaShape(
        *(o.vocab_size, o.width, o.depth, o.heads, o.kv_heads, o.width // o.heads, o.ffn_width), tied=False
    )
    model = models.llama(shape, dtype=o.dtype, remat=o.remat)
    ids: Any = jax.ShapeDtypeStruct((o.batch, o.length), np.int32)
    weights: Any = jax.ShapeDtypeStruct(ids.shape, np.float32)
    batch = Batch(ids, ids, ids, ids, weights)
    rows = {side: memory(side, model, batch) for side in SCHEMES}
    params = tree.flatten(base_of("lora", model))
    inner = sum(x.size for path, x in params.items() if path.startswith("layers/") and path.endswith("kernel"))
    console = Console(width=120)
    console.print(
        f"{shape}\n{tree.count(params) / 1e9:.3f} billion parameters, {inner / tree.count(params):.1%} quantised"
    )
    console.print(f"batch {o.batch} x {o.length} tokens, computed in {o.dtype}, remat={o.remat}, LoRA of rank 8")
    console.print(f"jax {jax.__version__} on {jax.default_backend()}, {platform.processor() or platform.machine()}")
    console.print(table_of(rows))
    for side in ("qlora int8", "qlora nf4", "qlora nf4, double"):
        codes = {p: x for p, x in tree.flatten(base_of(side, model)).items() if "/kernel/" in p}
        console.print(f"{side}: {8 * tree.nbytes(codes) / inner:.3f} bits per quantised weight")


if __name__ == "__main__":
    main()
