"""Measurements as `Measurement(init, update, finish)`: usable alone, and as probes while training."""

from adaptlab.measure.measurement import Measurement, Probe, make_probe, make_slot_probe
from adaptlab.measure.text import held_out_text

__all__ = ["Measurement", "Probe", "held_out_text", "make_probe", "make_slot_probe"]
