"""Ways to adapt a base model, each an `Adaptation(init, bind, axes)`."""

from adaptlab.adapt import merge, peft
from adaptlab.adapt.adalora import adalora, orthogonality
from adaptlab.adapt.adaptation import Adaptation, count_trained, materialize, prepared
from adaptlab.adapt.bottleneck import bottleneck
from adaptlab.adapt.compacter import compacter
from adaptlab.adapt.compose import chain
from adaptlab.adapt.diff_pruning import diff_pruning, expected_l0, l0, magnitude_pruned
from adaptlab.adapt.dora import dora
from adaptlab.adapt.files import load_delta, save_delta
from adaptlab.adapt.fisher_masked import fisher_mask, fisher_masked, load_mask, save_mask
from adaptlab.adapt.fusion import fusion
from adaptlab.adapt.ia3 import ia3
from adaptlab.adapt.lora import as_lora, fan_in_uniform, lora, zeros
from adaptlab.adapt.lora_conv import lora_conv
from adaptlab.adapt.p_tuning import p_tuning
from adaptlab.adapt.pissa import pissa
from adaptlab.adapt.prefix import prefix
from adaptlab.adapt.prompt import prompt
from adaptlab.adapt.quantization_aware import quantization_aware
from adaptlab.adapt.random_subspace import random_subspace
from adaptlab.adapt.selective import anchors, bitfit, freeze_below, layer_norm, linear_probe, selected
from adaptlab.adapt.simple import frozen, full, partition, scratch
from adaptlab.adapt.tenants import stack_adapters, tenants
from adaptlab.adapt.textual_inversion import textual_inversion
from adaptlab.adapt.vera import vera
from adaptlab.adapt.weighted import Share, loaded, share, weighted

__all__ = [
    "Adaptation",
    "Share",
    "adalora",
    "anchors",
    "as_lora",
    "bitfit",
    "bottleneck",
    "chain",
    "compacter",
    "count_trained",
    "diff_pruning",
    "dora",
    "expected_l0",
    "fan_in_uniform",
    "fisher_mask",
    "fisher_masked",
    "freeze_below",
    "frozen",
    "full",
    "fusion",
    "ia3",
    "l0",
    "layer_norm",
    "linear_probe",
    "load_delta",
    "load_mask",
    "loaded",
    "lora",
    "lora_conv",
    "magnitude_pruned",
    "materialize",
    "merge",
    "orthogonality",
    "p_tuning",
    "partition",
    "peft",
    "pissa",
    "prefix",
    "prepared",
    "prompt",
    "quantization_aware",
    "random_subspace",
    "save_delta",
    "save_mask",
    "scratch",
    "selected",
    "share",
    "stack_adapters",
    "tenants",
    "textual_inversion",
    "vera",
    "weighted",
    "zeros",
]
