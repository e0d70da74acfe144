"""Regenerates tests/golden/plan_*.hlo.gz: six scanned layers x + silu(x U) V and their gradient, compiled by libtpu
0.0.42 under jax 0.10.2 for 8 v5e chips (fsdp=4, tensor=2) and for two slices of them (data=2). Needs the `tpu` extra:

    JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1 ALLOW_MULTIPLE_LIBTPU_LOAD=true python tests/golden/plan_hlo.py
"""

import gzip
import re
from pathlib import Path

import jax
import jax.numpy as jnp
from jax.experimental import mesh_utils, topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

LAYERS, WIDTH, FFN, ROWS = 6, 2048, 8192, 8192


def hlo(slices):
    devices = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x4", num_slices=slices).devices
    if slices > 1:
        laid_out = mesh_utils.create_hybrid_device_mesh((1, 4, 2), (slices, 1, 1), devices)
    else:
        laid_out = mesh_utils.create_device_mesh((1, 4, 2), devices)
    mesh = Mesh(laid_out, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

    def on(*axes):
        return NamedSharding(mesh, PartitionSpec(*axes))

    def loss(w, x):
        def layer(h, w):
            u = jax.lax.with_sharding_constraint(w[0], on(None, "tensor"))
            v = jax.lax.with_sharding_constraint(w[1], on("tensor", None))
            return jax.lax.with_sharding_constraint(h + jax.nn.silu(h @ u) @ v, on(("data", "fsdp"), None)), None

        h, _ = jax.lax.scan(layer, x, w)
        return jnp.sum(h.astype(jnp.float32) ** 2)

    u = jax.ShapeDtypeStruct((LAYERS, WIDTH, FFN), jnp.bfloat16, sharding=on(None, "fsdp", "tensor"))
    v = jax.ShapeDtypeStruct((LAYERS, FFN, WIDTH), jnp.bfloat16, sharding=on(None, "tensor", "fsdp"))
    x = jax.ShapeDtypeStruct((ROWS * slices, WIDTH), jnp.bfloat16, sharding=on(("data", "fsdp"), None))
    text = jax.jit(jax.grad(loss), out_shardings=(u.sharding, v.sharding)).lower((u, v), x).compile().as_text()
    tables = re.compile(r"^(\d+ |FileNames|FunctionNames|FileLocations|StackFrames)")
    return "".join(re.sub(r", backend_config=.*$", "", l) + "\n" for l in text.splitlines() if not tables.match(l))


if __name__ == "__main__":
    for slices, name in ((1, "v5e_2x4"), (2, "v5e_2x4_2_slices")):
        path = Path(__file__).with_name(f"plan_{name}.hlo.gz")
        path.write_bytes(gzip.compress(hlo(slices).encode(), mtime=0))
