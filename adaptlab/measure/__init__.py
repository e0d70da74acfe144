"""Measurements as `Measurement(init, update, finish)`: usable alone, and as probes while training."""

from adaptlab.measure.measurement import Measurement, Probe, make_probe, make_slot_probe
from adaptlab.measure.text import held_out_text
from adaptlab.measure.update_probe import MeasuredUpdates, measured_updates

__all__ = [
    "MeasuredUpdates",
    "Measurement",
    "Probe",
    "held_out_text",
    "make_probe",
    "make_slot_probe",
    "measured_updates",
]
