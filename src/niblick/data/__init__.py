"""Text in, batches out: corpora, tokenizers with exact byte accounting, shards, and the batch
pipeline.

Nothing here imports torch, but for the one function that hands batches to a device.
"""
