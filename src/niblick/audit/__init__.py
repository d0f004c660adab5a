"""Reviews anybody's training script or record folder: is its score valid, and by what evidence.

`review.review` is the entry point. Reading never runs a submission's code; running happens only in
`audit.sandbox`'s child process.
"""
