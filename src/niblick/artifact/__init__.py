"""Files that hold a model: the artifact container and float checkpoints. No torch."""

from typing import TYPE_CHECKING

from niblick.lazy import lazily

if TYPE_CHECKING:
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
__getattr__ = lazily(
    __name__,
    {
        "niblick.artifact.checkpoint": ("Checkpoint", "read_checkpoint", "save_checkpoint"),
        "niblick.artifact.ledger": ("Ledger",),
        "niblick.artifact.load": ("ARTIFACT_FILE", "Opened", "exported_recipe", "open_file"),
    },
)
