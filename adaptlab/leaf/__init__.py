"""The weight nodes, and the few functions that read whatever stands where a model has a weight."""

from adaptlab.leaf.adapters import ACTIVATIONS, Bottleneck, Fusion, KroneckerSum
from adaptlab.leaf.choice import Choice
from adaptlab.leaf.decomposed import Decomposed, column_norms
from adaptlab.leaf.low_rank import Factored, LowRank
from adaptlab.leaf.prefix import Prefix, Prompt
from adaptlab.leaf.quantized import Affine, Quantized, Scales, array_axes, is_quantized, quantize
from adaptlab.leaf.scaled import Scaled
from adaptlab.leaf.sparse import Added, SparseDelta
from adaptlab.leaf.vera import VectorScaled
from adaptlab.leaf.weight import Weight, dense, dot, is_node, node, product, take

__all__ = [
    "ACTIVATIONS",
    "Added",
    "Affine",
    "Bottleneck",
    "Choice",
    "Decomposed",
    "Factored",
    "Fusion",
    "KroneckerSum",
    "LowRank",
    "Prefix",
    "Prompt",
    "Quantized",
    "Scaled",
    "Scales",
    "SparseDelta",
    "VectorScaled",
    "Weight",
    "array_axes",
    "column_norms",
    "dense",
    "dot",
    "is_node",
    "is_quantized",
    "node",
    "product",
    "quantize",
    "take",
]
