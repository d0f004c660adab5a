"""The one LanguageModel: a loop over a plan, built from the same specs that the plan sums."""

from niblick.model.build import build_model, load_tensors
from niblick.model.lm import LanguageModel
from niblick.model.state import State

__all__ = ["LanguageModel", "State", "build_model", "load_tensors"]
