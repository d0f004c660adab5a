"""Serving a model over HTTP: OpenAI's completions interface, many texts at once, a page.

Guarantees: a text is the one that `Model.generate` gives for the same sampling and seed, whatever
else runs; everything that a client can make large is bounded.
"""
