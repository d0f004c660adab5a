"""Files that hold a model: the artifact container and float checkpoints. No torch."""

from niblick.artifact.checkpoint import Checkpoint, read_checkpoint, save_checkpoint
from niblick.artifact.ledger import Ledger
from niblick.artifact.load import ARTIFACT_FILE, Opened, exported_recipe, open_file

__all__ = [
    "ARTIFACT_FILE",
    "Checkpoint",
    "Ledger",
    "Opened",
    "exported_recipe",
    "open_file",
    "read_checkpoint",
    "save_checkpoint",
]
