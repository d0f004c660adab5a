"""Optimizers by role over flat buffers, schedules placed by share of the budget, and weight
averaging.
"""

from niblick.optim.averaging import Averager, make_averager
from niblick.optim.buffers import Layout, Slot, Stack
from niblick.optim.groups import Group, group_of
from niblick.optim.muon import Muon, newton_schulz
from niblick.optim.optimizer import Optimizer
from niblick.optim.schedule import Moment, Schedule

__all__ = [
    "Averager",
    "Group",
    "Layout",
    "Moment",
    "Muon",
    "Optimizer",
    "Schedule",
    "Slot",
    "Stack",
    "group_of",
    "make_averager",
    "newton_schulz",
]
