"""Fused CPU kernels of the training step, as operators of torch, and the rewrite that uses them."""

from niblick.model.kernels.forms import use_kernels
from niblick.model.kernels.library import Kernels, load_kernels

__all__ = ["Kernels", "load_kernels", "use_kernels"]
