"""Files that hold a model: the artifact container, float checkpoints, and state dicts from
elsewhere.
"""

from niblick.artifact.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from niblick.artifact.ledger import Ledger
from niblick.artifact.load import ARTIFACT_FILE, Loaded, build_model, exported_recipe, open_model

__all__ = [
    "ARTIFACT_FILE",
    "Checkpoint",
    "Ledger",
    "Loaded",
    "build_model",
    "exported_recipe",
    "open_model",
    "read_checkpoint",
    "save_checkpoint",
]
