"""Configs are call trees: a node with `_target_` names a factory, and the factory's signature is its schema.

A config is checked whole (unknown keys, missing keys, wrong types) before anything loads, and completed with the
defaults of the signatures, so that what is recorded is what ran.
"""

from adaptlab.config.app import compose, conf_dir, main, register_resolver, to_yaml
from adaptlab.config.build import config_hash, fill, instantiate, merge, split
from adaptlab.config.check import (
    GIVEN,
    AtMost,
    BelowOne,
    ConfigError,
    Count,
    Given,
    Interval,
    NonNegative,
    Positive,
    Share,
    Traced,
    nearest,
    validate,
)
from adaptlab.config.texts import quoted

__all__ = [
    "GIVEN",
    "AtMost",
    "BelowOne",
    "ConfigError",
    "Count",
    "Given",
    "Interval",
    "NonNegative",
    "Positive",
    "Share",
    "Traced",
    "compose",
    "conf_dir",
    "config_hash",
    "fill",
    "instantiate",
    "main",
    "merge",
    "nearest",
    "quoted",
    "register_resolver",
    "split",
    "to_yaml",
    "validate",
]
