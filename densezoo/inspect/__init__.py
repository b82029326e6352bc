"""Inspection of models by tracing: lists their layers, and finds convolutions whose batch norms can be folded.

`walk` contains the traversal of traced programs. `summary` and `fold_batch_norm` are also exported by `densezoo`.
"""
