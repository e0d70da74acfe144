"""The objective, the step, the loop and its checkpoints, alone or many runs at once."""

from adaptlab.train.checkpoint import CheckpointError, Checkpoints, open_checkpoints
from adaptlab.train.duration import Duration, duration
from adaptlab.train.loop import Clock, Fitted, Measure, Run, Seat, Update, Writer, alone, course, fit
from adaptlab.train.objective import Loss, Objective, Term, l2_sp, make_objective
from adaptlab.train.program import Compiled, Numbers, Program, compile_program, device_numbers, make_program
from adaptlab.train.replicas import How, Replicas, SlotProbe, Work, compile_replicas, fit_replicas, over_slots
from adaptlab.train.step import TrainState, init_state, make_step, reading
from adaptlab.train.stopping import EarlyStopping, Watch, early_stopping

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Clock",
    "Compiled",
    "Duration",
    "EarlyStopping",
    "Fitted",
    "How",
    "Loss",
    "Measure",
    "Numbers",
    "Objective",
    "Program",
    "Replicas",
    "Run",
    "Seat",
    "SlotProbe",
    "Term",
    "TrainState",
    "Update",
    "Watch",
    "Work",
    "Writer",
    "alone",
    "compile_program",
    "compile_replicas",
    "course",
    "device_numbers",
    "duration",
    "early_stopping",
    "fit",
    "fit_replicas",
    "init_state",
    "l2_sp",
    "make_objective",
    "make_program",
    "make_step",
    "open_checkpoints",
    "over_slots",
    "reading",
]
