"""Optimizers by group over flat buffers, schedules by fraction of the budget, weight averaging."""

from niblick.optim.averaging import Averager, make_averager
from niblick.optim.base import OPTIMIZERS, Optimizer, ParameterGroup, Update
from niblick.optim.buffers import Layout, Slot, Stack
from niblick.optim.groups import LOW_PRECISION, Group, group_of
from niblick.optim.muon import Muon, balanced, newton_schulz
from niblick.optim.optimizer import Optimizers
from niblick.optim.schedule import SCHEDULES, Schedule, TrainingPosition
from niblick.optim.sharding import Bucket, Launched, Processes, Waiting

__all__ = [
    "LOW_PRECISION",
    "OPTIMIZERS",
    "SCHEDULES",
    "Averager",
    "Bucket",
    "Group",
    "Launched",
    "Layout",
    "Muon",
    "Optimizer",
    "Optimizers",
    "ParameterGroup",
    "Processes",
    "Schedule",
    "Slot",
    "Stack",
    "TrainingPosition",
    "Update",
    "Waiting",
    "balanced",
    "group_of",
    "make_averager",
    "newton_schulz",
]
