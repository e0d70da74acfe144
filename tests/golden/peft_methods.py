"""What PEFT computes for the low-rank methods on tiny layers: `python -m tests.golden.peft_methods` writes it again.

Needs torch and peft (the `reference` extra); made with torch 2.13.0 and peft 0.21.0. Nothing of adaptlab is used. All
matrices are stored from input to output: `[D, R]`, `[R, F]`, `[D, F]`.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

PATH = Path(__file__).parent / "peft_methods.npz"
RANK, ALPHA, ALLOCATED, STEPS = 3, 6.0, ("q", "v"), 20


def _uniform(seed: int, shape: tuple[int, int], bound: float) -> np.ndarray:
    """adaptlab's random matrix, in NumPy: VeRA's own random numbers are torch's."""

    def scrambled(x: np.ndarray) -> np.ndarray:
        x = (x ^ (x >> 16)) * 0x7FEB352D % 2**32
        x = (x ^ (x >> 15)) * 0x846CA68B % 2**32
        return x ^ (x >> 16)

    rows, columns = np.indices(shape, dtype=np.uint64)
    bits = scrambled(np.full(shape, (seed + 0x9E3779B9) % 2**32, np.uint64))
    for index in (rows, columns):
        bits = scrambled((bits * 31 + index * 0x9E3779B9 + 1) % 2**32)
    unit = ((bits >> 9).astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)
    return bound * (2.0 * unit - 1.0)


def _adapted(layers: Any, config: Any) -> Any:
    from peft import get_peft_model

    return get_peft_model(layers, config).base_model.model


def _numpy(tensor: Any) -> np.ndarray:
    return tensor.detach().numpy()


def _dora() -> dict[str, np.ndarray]:
    import torch
    from peft import LoraConfig

    layer = _adapted(
        torch.nn.ModuleDict({"q": torch.nn.Linear(7, 5, bias=False)}),
        LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=["q"], use_dora=True),
    ).q
    a, b, m = layer.lora_A.default.weight, layer.lora_B.default.weight, layer.lora_magnitude_vector.default.weight
    start = _numpy(m).copy()
    with torch.no_grad():
        b.copy_(torch.randn_like(b))
        m.mul_(1 + 0.1 * torch.randn_like(m))
    x = torch.randn(4, 7)
    y = layer(x)
    (y**2).sum().backward()
    arrays = {"w": layer.base_layer.weight.T, "a": a.T, "b": b.T, "m": m, "x": x, "y": y}
    grads = {"a_grad": a.grad.T, "b_grad": b.grad.T, "m_grad": m.grad}
    return {"m_start": start} | {name: _numpy(value) for name, value in (arrays | grads).items()}


def _vera() -> dict[str, np.ndarray]:
    import torch
    from peft import VeraConfig

    layers = torch.nn.ModuleDict({"q": torch.nn.Linear(7, 5, bias=False), "v": torch.nn.Linear(4, 6, bias=False)})
    model = _adapted(layers, VeraConfig(r=RANK, target_modules=["q", "v"], save_projection=True))
    arrays = {}
    for name, width in (("q", 7), ("v", 4)):
        layer = model[name]
        with torch.no_grad():
            layer.vera_A["default"].copy_(torch.tensor(_uniform(5, (7, RANK), (6 / 7) ** 0.5)).T)
            layer.vera_B["default"].copy_(torch.tensor(_uniform(6, (6, RANK), (6 / RANK) ** 0.5)))
            d, b = layer.vera_lambda_d["default"], layer.vera_lambda_b["default"]
            d.copy_(torch.randn_like(d))
            b.copy_(torch.randn_like(b))
        x = torch.randn(4, width)
        found = {"w": layer.base_layer.weight.T, "d": d, "b": b, "x": x, "y": layer(x)}
        arrays |= {f"{name}/{key}": _numpy(value) for key, value in found.items()}
    return arrays


def _pissa(init: Any) -> dict[str, np.ndarray]:
    import torch
    from peft import LoraConfig

    layers = torch.nn.ModuleDict({"q": torch.nn.Linear(9, 6, bias=False)})
    w = _numpy(layers["q"].weight.T).copy()
    layer = _adapted(layers, LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=["q"], init_lora_weights=init)).q
    product = layer.lora_A.default.weight.T @ layer.lora_B.default.weight.T
    return {"w": w, "product": _numpy(product), "residual": _numpy(layer.base_layer.weight.T)}


def _conv() -> dict[str, np.ndarray]:
    import torch
    from peft import LoraConfig

    layers = torch.nn.ModuleDict({"c": torch.nn.Conv2d(4, 5, (3, 2), stride=(2, 1), padding=(1, 0), bias=False)})
    layer = _adapted(layers, LoraConfig(r=RANK, lora_alpha=int(ALPHA), target_modules=["c"])).c
    a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
    with torch.no_grad():
        b.copy_(torch.randn_like(b))
    x = torch.randn(2, 4, 6, 5)
    hwio = (2, 3, 1, 0)
    return {
        "w": _numpy(layer.base_layer.weight.permute(hwio)),
        "a": _numpy(a.permute(hwio)),
        "b": _numpy(b[:, :, 0, 0].T),
        "x": _numpy(x.permute(0, 2, 3, 1)),
        "y": _numpy(layer(x).permute(0, 2, 3, 1)),
    }


def _adalora() -> dict[str, np.ndarray]:
    import torch
    from peft.tuners.adalora.layer import RankAllocator

    model = torch.nn.Module()
    shapes = {"lora_A": (6, 5), "lora_E": (6, 1), "lora_B": (4, 6)}
    for name in ALLOCATED:
        for part, shape in shapes.items():
            model.register_parameter(f"{name}_{part}_default", torch.nn.Parameter(torch.randn(shape)))
    # PEFT knows its parameters by dots in their names, which torch forbids here.
    named = {key.replace("_lora", ".lora").replace("_default", ".default"): p for key, p in model.named_parameters()}
    config = {"beta1": 0.85, "beta2": 0.85, "target_r": 2, "tinit": 4, "tfinal": 6, "total_step": STEPS, "deltaT": 2}
    known = SimpleNamespace(named_parameters=lambda: named.items())
    allocator = RankAllocator(known, SimpleNamespace(**config), "default")
    start = {key: _numpy(p).copy() for key, p in named.items()}
    gradients, kept = [], []
    for step in range(1, STEPS + 1):
        for p in named.values():
            p.grad = torch.randn_like(p)
        gradients.append({key: _numpy(p.grad).copy() for key, p in named.items()})
        allocator.update_and_allocate(known, step)
        kept.append([_numpy(named[f"{name}.lora_E.default"])[:, 0] != 0 for name in ALLOCATED])
    arrays = {"kept": np.array(kept)}
    ours = {"lora_A": "p", "lora_E": "lambda", "lora_B": "q"}
    for key in named:
        name, part, _ = key.split(".")
        flat = (lambda x: x[:, 0]) if part == "lora_E" else (lambda x: x.T)
        arrays[f"start/{name}/{ours[part]}"] = flat(start[key])
        arrays[f"grad/{name}/{ours[part]}"] = np.stack([flat(g[key]) for g in gradients])
    return arrays


def compute() -> dict[str, np.ndarray]:
    """Return every array by name, `method/array`."""
    import torch

    torch.set_num_threads(1)
    methods = {
        "dora": _dora,
        "vera": _vera,
        "pissa": lambda: _pissa("pissa"),
        "pissa_fast": lambda: _pissa("pissa_niter_16"),
        "conv": _conv,
        "adalora": _adalora,
    }
    arrays = {}
    for name, make in methods.items():
        torch.manual_seed(0)
        arrays |= {f"{name}/{key}": np.ascontiguousarray(value) for key, value in make().items()}
    return arrays


if __name__ == "__main__":
    np.savez_compressed(PATH, **compute())  # pyright: ignore[reportArgumentType]
    print(f"{PATH}: {PATH.stat().st_size / 1000:.0f} kB")
