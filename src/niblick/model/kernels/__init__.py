"""Fused CPU kernels of the training step, and the operations of the model built on them."""

from niblick.model.kernels.library import Kernels, load_kernels
from niblick.model.kernels.ops import FusedOps

__all__ = ["FusedOps", "Kernels", "load_kernels"]
