"""The weight nodes, and the few functions that read whatever stands where a model has a weight."""

from adaptlab.leaf.low_rank import LowRank
from adaptlab.leaf.weight import Weight, dense, dot, is_node, node, product, take

__all__ = ["LowRank", "Weight", "dense", "dot", "is_node", "node", "product", "take"]
