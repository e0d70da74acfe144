"""Ways to adapt a base model, each an `Adaptation(init, bind, axes)`."""

from adaptlab.adapt.adaptation import Adaptation, materialize, prepared
from adaptlab.adapt.files import load_delta, save_delta
from adaptlab.adapt.lora import fan_in_uniform, lora, zeros
from adaptlab.adapt.simple import frozen, full, partition, scratch

__all__ = [
    "Adaptation",
    "fan_in_uniform",
    "frozen",
    "full",
    "load_delta",
    "lora",
    "materialize",
    "partition",
    "prepared",
    "save_delta",
    "scratch",
    "zeros",
]
