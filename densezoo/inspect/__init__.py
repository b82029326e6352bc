"""Reading a model by tracing it: its layers, and the convolutions whose batch norms can be folded.

The one walk over traced programs is in `walk`. `summary` and `fold_batch_norm` are also densezoo's own.
"""
