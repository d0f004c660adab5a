"""The one LanguageModel: a loop over a plan, built from the same specs that the plan sums."""

from niblick.model.build import build_model, load_tensors
from niblick.model.ensemble import Ensemble, members_of, new_model
from niblick.model.lm import LanguageModel
from niblick.model.state import State

__all__ = [
    "Ensemble",
    "LanguageModel",
    "State",
    "build_model",
    "load_tensors",
    "members_of",
    "new_model",
]
