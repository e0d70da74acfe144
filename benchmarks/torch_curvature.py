"""A PyTorch worker for `benchmarks.curvature`: PyHessian, hessian-eigenthings or curvlinops on one model and batch.

    python torch_curvature.py '{"side": "pyhessian", "model": "mlp", "weights": …, "batch": …, "threads": 2}'

Prints "ready" and the number of parameters once everything is imported. Then it reads tasks from standard input, one
JSON object a line, e.g. `{"task": "top", "k": 1}`, and answers each with a line of JSON: its seconds and what it found.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "classifier_dropout": 0.0}


class Bert(nn.Module):
    """transformers' classifier, called with token ids alone; its attention is the one that differentiates twice."""

    def __init__(self, folder: str) -> None:
        from transformers import AutoModelForSequenceClassification

        super().__init__()
        make = AutoModelForSequenceClassification.from_pretrained
        self.inner = make(folder, attn_implementation="eager", **NO_DROPOUT)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.inner(input_ids=tokens).logits


def mlp(weights: dict[str, np.ndarray]) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(len(weights) // 2):
        kernel, bias = (torch.from_numpy(weights[f"dense_{i}/{part}"].copy()) for part in ("kernel", "bias"))
        linear = nn.Linear(*kernel.shape)
        linear.load_state_dict({"weight": kernel.T, "bias": bias})
        layers += [linear, nn.Tanh()]
    return nn.Sequential(*layers[:-1])


class PyHessian:
    """Power iteration until the eigenvalue changes by less than `tolerance`; Lanczos without restarts."""

    def __init__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        # torch.eig, which PyHessian 0.1 calls, is gone; its matrix is symmetric.
        def eig(matrix: torch.Tensor, eigenvectors: bool) -> Any:
            values, vectors = torch.linalg.eigh(matrix)
            return torch.stack([values, torch.zeros_like(values)], dim=1), vectors

        torch.eig = eig  # pyright: ignore[reportAttributeAccessIssue]
        import pyhessian
        import pyhessian.utils

        self.module, self.model, self.data = pyhessian, model, (x, y)

    def start(self) -> None:
        self.model.zero_grad(set_to_none=True)
        self.hessian = self.module.hessian(self.model, nn.CrossEntropyLoss(), data=self.data, cuda=False)

    def product(self) -> None:
        h = self.hessian
        self.module.utils.hessian_vector_product(h.gradsH, h.params, [torch.ones_like(p) for p in h.params])

    def top(self, k: int, tolerance: float, steps: int) -> list[float]:
        return self.hessian.eigenvalues(maxIter=200, tol=tolerance, top_n=k)[0]

    def density(self, probes: int, steps: int) -> Any:
        nodes, weights = self.hessian.density(iter=steps, n_v=probes)
        return nodes, weights


class EigenThings:
    """Lanczos with a given number of steps, reorthogonalised once."""

    def __init__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        import hessian_eigenthings

        self.module, self.model, self.data = hessian_eigenthings, model, (x, y)

    def start(self) -> None:
        loss = self.module.supervised_loss(nn.CrossEntropyLoss())
        self.operator = self.module.HessianOperator(self.model, [self.data], loss)

    def product(self) -> None:
        self.operator.matvec(torch.ones(self.operator.size))

    def top(self, k: int, tolerance: float, steps: int) -> list[float]:
        found = self.module.lanczos(self.operator, k=k, max_iter=steps, which="LA", seed=0, reorthogonalize=True)
        return found.eigenvalues.tolist()

    def density(self, probes: int, steps: int) -> Any:
        runs = {"num_runs": probes, "lanczos_steps": steps}
        found = self.module.spectral_density(self.operator, **runs, num_grid_points=2, seed=0)
        return found.raw_eigenvalues.tolist(), found.raw_weights.tolist()


class CurvLinOps:
    """SciPy's eigsh (implicitly restarted Lanczos) over curvlinops' operator; its own Lanczos for the density."""

    def __init__(self, model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> None:
        import curvlinops
        import scipy.sparse.linalg
        from curvlinops.papyan2020traces.spectrum import fast_lanczos

        self.make, self.eigsh, self.lanczos = curvlinops.HessianLinearOperator, scipy.sparse.linalg.eigsh, fast_lanczos
        self.model, self.data = model, (x, y)

    def start(self) -> None:
        params = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        rest = [self.data]
        try:
            self.operator = self.make(self.model, nn.CrossEntropyLoss(), params, rest, check_deterministic=False)
        except (AttributeError, TypeError, ValueError):  # releases before 3 take a list
            leaves = list(params.values())
            self.operator = self.make(self.model, nn.CrossEntropyLoss(), leaves, rest, check_deterministic=False)

    def product(self) -> None:
        _ = self.operator @ torch.ones(self.operator.shape[1])

    def top(self, k: int, tolerance: float, steps: int) -> list[float]:
        return sorted(self.eigsh(self.operator.to_scipy(), k=k, which="LA", tol=tolerance)[0].tolist(), reverse=True)

    def density(self, probes: int, steps: int) -> Any:
        runs = [self.lanczos(self.operator, steps) for _ in range(probes)]
        return [run[0].tolist() for run in runs], [(run[1][0] ** 2).tolist() for run in runs]


SIDES: dict[str, Callable[..., Any]] = {
    "pyhessian": PyHessian,
    "hessian-eigenthings": EigenThings,
    "curvlinops": CurvLinOps,
}


def main() -> None:
    o = json.loads(sys.argv[1])
    torch.manual_seed(0)
    torch.set_num_threads(o["threads"])
    batch = np.load(o["batch"])
    x, y = (torch.from_numpy(batch[name]) for name in ("inputs", "targets"))
    model = Bert(o["folder"]).eval() if o["model"] == "bert" else mlp(dict(np.load(o["weights"])))
    side = SIDES[o["side"]](model, x.long() if o["model"] == "bert" else x, y.long())
    print("ready", sum(p.numel() for p in model.parameters()), flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        name = task.pop("task")
        if name == "product":
            side.start()  # what is kept for all products is not part of one
        begun = time.perf_counter()
        if name != "product":
            side.start()
        found = getattr(side, name)(**task)
        print(json.dumps({"seconds": time.perf_counter() - begun, "found": np.asarray(found).tolist()}), flush=True)


if __name__ == "__main__":
    main()
