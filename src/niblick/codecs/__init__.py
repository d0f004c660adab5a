"""Codecs: the tensors of a model to a payload of few bytes and back. No torch."""
