"""Scores and what is made of them: windows, proofs, statistics, cards, comparisons. No torch."""
