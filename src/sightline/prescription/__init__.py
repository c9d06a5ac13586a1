"""Causes → edits, tried: what to change in the training, and the proof that it helped.

edits      a cause → edits of the augmentation policy
variety    the edit that no cause asks for
plan       what a fix costs, what fits into a budget, what its numbers say
measures   what is measured of a net
ground     what all stages stand on: the run, its data, the folder
pruning    short fine-tunes: which edit is worth full trainings
proof      the plan, the trainings and the numbers
campaign   all of it, stage by stage
"""

from .campaign import Fix, fix
from .edits import INVARIANCES, Edit, edits, generic
from .ground import Step
from .plan import Budget, Costs, Interval, plan_budget, verdict
from .pruning import Trial
from .variety import variety

__all__ = [
    "INVARIANCES",
    "Budget",
    "Costs",
    "Edit",
    "Fix",
    "Interval",
    "Step",
    "Trial",
    "edits",
    "fix",
    "generic",
    "plan_budget",
    "variety",
    "verdict",
]
