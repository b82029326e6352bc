"""Inspection of models: their layers, receptive fields and gradients, and batch norms that can be folded.

`walk` contains the traversal of traced programs. `summary` and `fold_batch_norm` are also exported by `densezoo`.
"""

from densezoo.inspect.gradients import GradientFlow, LayerGradient, gradient_flow
from densezoo.inspect.receptive import ReceptiveField, ReceptiveFields, effective_receptive_field, receptive_fields

__all__ = [
    "GradientFlow",
    "LayerGradient",
    "ReceptiveField",
    "ReceptiveFields",
    "effective_receptive_field",
    "gradient_flow",
    "receptive_fields",
]
