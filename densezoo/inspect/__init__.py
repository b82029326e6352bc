"""Inspection of models: lists their layers, measures gradients, and finds batch norms that can be folded.

`walk` contains the traversal of traced programs. `summary` and `fold_batch_norm` are also exported by `densezoo`.
"""

from densezoo.inspect.gradients import GradientFlow, LayerGradient, gradient_flow

__all__ = ["GradientFlow", "LayerGradient", "gradient_flow"]
