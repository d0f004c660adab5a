"""Training: from a recipe and a dataset to weights, on one processor or many, without ever losing
work.
"""

from niblick.training.progress import Progress, TrainResult
from niblick.training.trainer import train

__all__ = ["Progress", "TrainResult", "train"]
