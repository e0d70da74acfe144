"""The objective, the step, the loop and its checkpoints."""

from adaptlab.train.checkpoint import CheckpointError, Checkpoints, open_checkpoints
from adaptlab.train.duration import Duration, duration
from adaptlab.train.loop import Fitted, Run, Writer, fit
from adaptlab.train.objective import Loss, Objective, Term, make_objective
from adaptlab.train.program import Compiled, Numbers, Program, compile_program, device_numbers, make_program
from adaptlab.train.step import TrainState, init_state, make_step

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "Compiled",
    "Duration",
    "Fitted",
    "Loss",
    "Numbers",
    "Objective",
    "Program",
    "Run",
    "Term",
    "TrainState",
    "Writer",
    "compile_program",
    "device_numbers",
    "duration",
    "fit",
    "init_state",
    "make_objective",
    "make_program",
    "make_step",
    "open_checkpoints",
]
