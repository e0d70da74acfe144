"""What a training step needs on a pod, found by compiling it for one: memory, operations, communication, time."""

from adaptlab.plan.budget import Budget, budget
from adaptlab.plan.chips import CHIPS, Chip
from adaptlab.plan.collectives import Collective, collectives, totals
from adaptlab.plan.compiler import choose_backend, make_compiler
from adaptlab.plan.hlo import parse_hlo
from adaptlab.plan.job import Job
from adaptlab.plan.planner import Costs, Plan, assess
from adaptlab.plan.roofline import Roofline, roofline
from adaptlab.plan.suggest import largest_batch, suggestions
from adaptlab.plan.tables import print_plan
from adaptlab.plan.topology import Topology, parse_topology
from adaptlab.plan.work import Work, work

__all__ = [
    "CHIPS",
    "Budget",
    "Chip",
    "Collective",
    "Costs",
    "Job",
    "Plan",
    "Roofline",
    "Topology",
    "Work",
    "assess",
    "budget",
    "choose_backend",
    "collectives",
    "largest_batch",
    "make_compiler",
    "parse_hlo",
    "parse_topology",
    "print_plan",
    "roofline",
    "suggestions",
    "totals",
    "work",
]
