"""Models as `Model(init, apply, axes)`, and their weights from files. The only room that knows Flax."""

from adaptlab.models import names
from adaptlab.models.bert import BertShape, bert, bert_classifier
from adaptlab.models.fan_in import by_fan_in
from adaptlab.models.gpt2 import GPT2Shape, gpt2
from adaptlab.models.llama import LlamaShape, llama
from adaptlab.models.losses import chosen_logits, classification, cross_entropy, language_modelling
from adaptlab.models.mixtral import MixtralShape, mixtral
from adaptlab.models.mlp import mlp
from adaptlab.models.model import Model, Pretrained, Slot, placed
from adaptlab.models.one_f_one_b import pipelined
from adaptlab.models.pipeline import bubble_fraction
from adaptlab.models.pretrained import from_shape, pretrained, save_hf
from adaptlab.models.quantize import Quantization, quantize, quantized
from adaptlab.models.stack import REMAT_POLICIES

__all__ = [
    "REMAT_POLICIES",
    "BertShape",
    "GPT2Shape",
    "LlamaShape",
    "MixtralShape",
    "Model",
    "Pretrained",
    "Quantization",
    "Slot",
    "bert",
    "bert_classifier",
    "bubble_fraction",
    "by_fan_in",
    "chosen_logits",
    "classification",
    "cross_entropy",
    "from_shape",
    "gpt2",
    "language_modelling",
    "llama",
    "mixtral",
    "mlp",
    "names",
    "pipelined",
    "placed",
    "pretrained",
    "quantize",
    "quantized",
    "save_hf",
]
