"""What was done and measured: cards, comparisons, plots; everything generated, text from outside
escaped.
"""
