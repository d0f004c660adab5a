"""What training minimises and evaluation sums: negative log-likelihoods in nats, and proofs about
them.
"""

from niblick.components.functional import nll as token_nll
from niblick.objective.likelihood import training_loss

__all__ = ["token_nll", "training_loss"]
