"""The weight nodes, and the few functions that read whatever stands where a model has a weight."""

from adaptlab.leaf.adapters import ACTIVATIONS, Bottleneck, Fusion, KroneckerSum
from adaptlab.leaf.axes import map_arrays
from adaptlab.leaf.choice import Choice
from adaptlab.leaf.conv import LowRankConv, conv
from adaptlab.leaf.decomposed import Decomposed, column_norms
from adaptlab.leaf.fake_quantized import FakeQuantized
from adaptlab.leaf.held import Blend, Held
from adaptlab.leaf.layout import as_written
from adaptlab.leaf.low_rank import Factored, LowRank
from adaptlab.leaf.prefix import Prefix, Prompt
from adaptlab.leaf.quantized import Affine, Quantized, Scales, array_axes, is_quantized, quantize
from adaptlab.leaf.rows import Rows
from adaptlab.leaf.scaled import Scaled
from adaptlab.leaf.sparse import Added, SparseDelta
from adaptlab.leaf.subspace import Projected, fastfood
from adaptlab.leaf.trained_layers import TrainedLayers
from adaptlab.leaf.vera import VectorScaled
from adaptlab.leaf.weight import Weight, dense, dot, is_node, node, product, take

__all__ = [
    "ACTIVATIONS",
    "Added",
    "Affine",
    "Blend",
    "Bottleneck",
    "Choice",
    "Decomposed",
    "Factored",
    "FakeQuantized",
    "Fusion",
    "Held",
    "KroneckerSum",
    "LowRank",
    "LowRankConv",
    "Prefix",
    "Projected",
    "Prompt",
    "Quantized",
    "Rows",
    "Scaled",
    "Scales",
    "SparseDelta",
    "TrainedLayers",
    "VectorScaled",
    "Weight",
    "array_axes",
    "as_written",
    "column_norms",
    "conv",
    "dense",
    "dot",
    "fastfood",
    "is_node",
    "is_quantized",
    "map_arrays",
    "node",
    "product",
    "quantize",
    "take",
]
