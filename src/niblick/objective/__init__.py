"""What training minimises and evaluation sums: negative log-likelihoods in nats, and proofs about
them.
"""

from niblick.objective.likelihood import token_nll, training_loss

__all__ = ["token_nll", "training_loss"]
