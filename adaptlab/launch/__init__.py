"""Launching: what would run a command on every host of a machine elsewhere, rendered before anything is submitted.

A target, such as a TPU slice or a Slurm cluster, is a function from a job to the files and the command that submit it.
"""

from adaptlab.launch.fits import refuse_unless_it_fits
from adaptlab.launch.gke import jobset, xpk
from adaptlab.launch.job import EXIT_PREEMPTED, Job, Rendered, Target, job
from adaptlab.launch.sky import skypilot
from adaptlab.launch.slurm import slurm
from adaptlab.launch.tpu import queued_resource, tpu_vm

__all__ = [
    "EXIT_PREEMPTED",
    "Job",
    "Rendered",
    "Target",
    "job",
    "jobset",
    "queued_resource",
    "refuse_unless_it_fits",
    "skypilot",
    "slurm",
    "tpu_vm",
    "xpk",
]
