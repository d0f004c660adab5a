"""Sequence mixers: one file and one registration each, beside its torch-free table in
`niblick.plan.mixers`.
"""

from niblick.model.mixers import attention, token_shift
from niblick.model.mixers.base import MIXERS, Context, Mixer

__all__ = ["MIXERS", "Context", "Mixer", "attention", "token_shift"]
