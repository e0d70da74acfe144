"""Models as `Model(init, apply, axes)`, and their weights from files. The only room that knows Flax."""

from adaptlab.models.llama import LlamaShape, llama
from adaptlab.models.losses import cross_entropy, language_modelling
from adaptlab.models.mlp import mlp
from adaptlab.models.model import Model, Pretrained, Slot
from adaptlab.models.pretrained import pretrained, save_hf
from adaptlab.models.stack import REMAT_POLICIES

__all__ = [
    "REMAT_POLICIES",
    "LlamaShape",
    "Model",
    "Pretrained",
    "Slot",
    "cross_entropy",
    "language_modelling",
    "llama",
    "mlp",
    "pretrained",
    "save_hf",
]
