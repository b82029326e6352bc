"""Losses for dense prediction: pure functions from logits (b, h, w, c) and labels (b, h, w) to a float32 scalar.

The losses of detectors (`sigmoid_focal_loss`, `smooth_l1_loss`, `giou_loss`, `binary_cross_entropy`) return the loss of
each element, which the task sums. The losses of depth and normals (`silog_loss`, `depth_l1_loss`,
`gradient_matching_loss`, `scale_shift_invariant_loss`, `cosine_loss`) compare maps of floats, and ignore the pixels
without a measurement (0, negative, infinite, NaN). All other losses follow these rules; their docstrings describe the
rest.

- One channel (c == 1) is binary: a sigmoid, with labels 0 and 1. More channels are classes of a softmax, with labels
  0 to c - 1. (`focal_loss` and the binary `lovasz_loss` differ; see their docstrings.)
- Logits may have any float dtype; everything is computed in float32.
- `ignore_index`, which may be outside the classes, marks ignored pixels. Their logits, even NaN, affect neither
  the loss nor the gradient. If all pixels are ignored, or there are none, the loss and its gradient are zero.
- A NaN in the logits of other pixels makes the loss NaN.
- Any other label outside the classes makes the loss NaN. Values cannot be checked inside `jax.jit`, and a plausible but
  wrong loss (for instance for a mask stored as 0 and 255) would be worse.
"""

from densezoo.losses._boundary import boundary_weighted_cross_entropy, boundary_weights
from densezoo.losses._boxes import binary_cross_entropy, giou_loss, sigmoid_focal_loss, smooth_l1_loss
from densezoo.losses._cross_entropy import cross_entropy, focal_loss
from densezoo.losses._deep import deep_supervision
from densezoo.losses._depth import (
    cosine_loss,
    depth_l1_loss,
    gradient_matching_loss,
    scale_shift_invariant_loss,
    silog_loss,
)
from densezoo.losses._lovasz import lovasz_loss
from densezoo.losses._named import DEPTH_LOSSES, LOSSES, named_depth_loss, named_loss
from densezoo.losses._overlap import dice_loss, jaccard_loss, tversky_loss

__all__ = [
    "DEPTH_LOSSES",
    "LOSSES",
    "binary_cross_entropy",
    "boundary_weighted_cross_entropy",
    "boundary_weights",
    "cosine_loss",
    "cross_entropy",
    "deep_supervision",
    "depth_l1_loss",
    "dice_loss",
    "focal_loss",
    "giou_loss",
    "gradient_matching_loss",
    "jaccard_loss",
    "lovasz_loss",
    "named_depth_loss",
    "named_loss",
    "scale_shift_invariant_loss",
    "sigmoid_focal_loss",
    "silog_loss",
    "smooth_l1_loss",
    "tversky_loss",
]
