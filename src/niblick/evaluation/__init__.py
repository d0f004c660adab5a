"""Evaluation that cannot cheat: windows, streaming, score-first adaptation, proofs, statistics,
Scores.
"""

from niblick.evaluation.evaluate import evaluate
from niblick.scoring.options import Adaptation, EvaluationOptions, LeakyTraining
from niblick.scoring.score import Score, read_score

__all__ = ["Adaptation", "EvaluationOptions", "LeakyTraining", "Score", "evaluate", "read_score"]
