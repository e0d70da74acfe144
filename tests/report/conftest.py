"""A small made-up study that looks like a real one."""

import numpy as np
import pytest

from adaptlab.report.curves import make_curves
from adaptlab.report.summary import summarise

TARGET, UPSTREAM = "german_parliament", ["english_news", "english_parliament", "python_source"]
BASE = {TARGET: 4.02, UPSTREAM[0]: 3.31, UPSTREAM[1]: 3.12, UPSTREAM[2]: 2.47}


def _synthetic(methods=("full", "lora"), rates=(1e-4, 1e-3), seeds=(0, 1, 2), diverge=False):
    """Return (curves, runs) of saturating gains and growing forgetting with a little noise by seed."""
    steps = np.arange(0, 201, 20)
    rows, runs = [], {}
    for m, method in enumerate(methods):
        for r, rate in enumerate(rates):
            for seed in seeds:
                run = f"{method}/lr={rate:g}/seed={seed}"
                runs[run] = _attributes(method, rate, seed, m)
                noise = np.random.default_rng([m, r, seed])
                for domain, loss_N in _losses(steps, m, r, noise).items():
                    if diverge and (m, r, seed) == (0, len(rates) - 1, 0):
                        loss_N = np.where(steps > 100, np.nan, loss_N)
                        runs[run]["diverged_at"] = 107
                    rows += _rows(run, steps, domain, loss_N)
    return make_curves(rows), runs


@pytest.fixture(scope="session")
def make_study():
    """A function that returns (curves, runs, summary) of a made-up study."""

    def make(upstream=UPSTREAM, **options):
        curves, runs = _synthetic(**options)
        return curves, runs, summarise(curves, runs, TARGET, upstream)

    return make


def _attributes(method, rate, seed, m):
    return {
        "method": method,
        "lr": rate,
        "seed": seed,
        "trainable_parameters": [134_515_008, 2_442_240][m % 2],
        "flops": [1.1e14, 7.4e13][m % 2],
        "tokens_per_second": [412.0, 566.0][m % 2] + seed,
        "peak_memory_bytes": [3.1e9, 1.6e9][m % 2],
        "diverged_at": None,
        "delta_digest": f"{m}{seed}" * 32,
    }


def _losses(steps, m, r, noise):
    pace = 0.65**m * (1 + 0.9 * r)
    wobble = 1 + 0.07 * noise.standard_normal()
    time = steps / 200 * pace
    losses = {TARGET: BASE[TARGET] - 1.05 * wobble * (1 - np.exp(-3 * time)) + 0.05 * m * time}
    for i, domain in enumerate(UPSTREAM):
        scale = [0.28, 0.2, 0.42][i] * 0.7**m * (1 + 0.15 * noise.standard_normal())
        losses[domain] = BASE[domain] + scale * time**0.7
    return {d: x + 0.004 * noise.standard_normal(len(x)) * (steps > 0) for d, x in losses.items()}


def _rows(run, steps, domain, loss_N):
    rows = []
    for step, loss in zip(steps.tolist(), loss_N.tolist(), strict=True):
        measured = {
            "loss": loss,
            "perplexity": float(np.exp(loss)),
            "bits_per_byte": loss / np.log(2) / 3.7,
            "accuracy": 0.9 - loss / 8,
        }
        rows += [(run, step, f"held_out/{domain}/{metric}", value) for metric, value in measured.items()]
    return rows
