"""The words under the figures of ranks and updates."""

from collections.abc import Mapping
from typing import Any

from adaptlab.report.captions import Caption
from adaptlab.report.words import number

__all__ = ["update_captions"]


def update_captions(summary: Mapping[str, Any]) -> dict[str, Caption]:
    """Return the captions of `rank_figures.draw_ranks` and `update_figures.draw_updates`, by name."""
    if "ranks" not in summary:
        return {}
    ranks, level = summary["ranks"], f"{summary['confidence']:.0%}"
    bars = f"{level} Student interval over seeds"
    equal = (
        f"Each method at its lowest learning rate whose mean final gain is at least {number(ranks['equal'])} nats "
        "per token, 90% of the largest that all methods reach (at its best one, if there is none); at most eight "
        "are drawn."
    )
    return _of_ranks(ranks, bars) | _of_updates(bars, equal)


def _of_ranks(ranks: Mapping[str, Any], bars: str) -> dict[str, Caption]:
    return {
        "frontiers": Caption(
            "Frontiers",
            "The least that a method forgets for a gain, whatever the learning rate: of the rates whose runs all "
            "reach the gain, the one with the lowest mean over seeds, where the runs first reach it. Lower is "
            f"better, further right is more. Band: {bars} at that rate.",
        ),
        "gain_by_rank": Caption(
            "Gain and forgetting by rank",
            "Left: the gain at the best step of each method's best learning rate. Right: the least forgetting over "
            f"all learning rates (the frontier) at a gain of {number(ranks['level'])} nats per token, 75% of the "
            f"largest that all methods attain. Dashed: methods without a rank. Bars and band: {bars}. Methods are "
            "shifted sideways a little.",
        ),
        "best_rate_by_rank": Caption(
            "Best learning rate by rank",
            "The learning rate with the largest final gain, interpolated between those tried by the parabola "
            "through the best and its neighbours, mean of the logarithm over seeds. Dashed: methods without a "
            f"rank. Bars and band: {bars}. An open triangle: the best of some seed is at the end of the rates "
            "tried, and may lie beyond.",
        ),
        "gain_by_parameters": Caption(
            "Gain by the number of trained parameters",
            "The gain at the best step of each method's best learning rate. Vertical line: the intrinsic dimension, "
            "the smallest number of dimensions of a random subspace that gains 90% of what full fine-tuning does, "
            "interpolated in its logarithm, mean over seeds with its interval as a band; dotted where some seed's is "
            "only a bound. "
            f"Bars: {bars}.",
        ),
    }


def _of_updates(bars: str, equal: str) -> dict[str, Caption]:
    return {
        "update_spectra": Caption(
            "Singular values of the updates",
            "The k-th singular value of the final update W' - W as a share of the largest, by kind of matrix: the "
            "mean over layers and seeds, and the range over layers. Shares below a millionth are rounding, and not "
            f"drawn. {equal}",
        ),
        "update_ranks": Caption(
            "Stable rank over training",
            "The stable rank of the update, its squared Frobenius norm over its squared largest singular value, by "
            f"kind of matrix. Thin: layers; thick: the mean over them, both over seeds. {equal}",
        ),
        "update_alignment": Caption(
            "Where the updates lie",
            "How much of the update's leading subspace lies in the leading subspace of the weight W (upper row) "
            "and of the gradient at the start (lower row), over what random subspaces would have: 1 (white) is "
            "chance, red is more. The overlap is the squared norm of the product of the two bases over the smaller "
            "dimension, averaged over the input side, the output side and seeds, by layer and kind of matrix. "
            f"{equal}",
        ),
        "intruder_dimensions": Caption(
            "Intruder dimensions",
            "How many of the leading singular vectors (output side) of the adapted weight have no absolute cosine "
            "of ε or more with any singular vector of the base's weight, mean over matrices and layers, against ε. "
            f"Band: {bars}. {equal}",
        ),
        "truncation": Caption(
            "Updates cut to a lower rank",
            "Gain and forgetting at the end of training, with each matrix's update cut to its leading singular "
            f"triples and everything else that was trained left as it is (rank 0: that alone). Band: {bars}. {equal}",
        ),
        "norm_and_angle": Caption(
            "How fine is fine-tuning?",
            "One point for each run at each learning rate, at the end of training: the Frobenius norm of the "
            "update over that of the weight, and the angle between the weight and the adapted weight as vectors, "
            "means over matrices and layers. An update across the weight has angle atan(relative norm).",
        ),
    }
