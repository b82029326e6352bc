"""Metrics for dense prediction: counts that are summed over steps and devices, and scores computed from counts.

For example::

    counts = Counts.zeros(num_classes)
    for batch in batches:
        counts += confusion_counts(predict(logits(batch)), batch["mask"], num_classes=num_classes)
    print(iou(counts), mean_iou(counts))

A class that occurs neither in the labels nor in the predictions has a score of NaN, and is excluded from means.
Binary segmentation has two classes, and class 1 is the foreground.
"""

from densezoo.metrics._boundary import (
    BoundaryCounts,
    boundary_band_counts,
    boundary_counts,
    boundary_f_score,
    boundary_iou,
)
from densezoo.metrics._collected import Collected
from densezoo.metrics._counts import (
    Counts,
    accuracy,
    class_mean,
    confusion_counts,
    dice,
    iou,
    mean_dice,
    mean_iou,
    multilabel_counts,
    pixel_accuracy,
    precision,
    predict,
    recall,
)
from densezoo.metrics._depth import AngleCounts, DepthSums, angle_counts, depth_sums
from densezoo.metrics._detection import (
    average_precision,
    coco_annotations,
    coco_dataset,
    coco_results,
    encode_mask,
)
from densezoo.metrics._matrix import confusion_matrix
from densezoo.metrics._panoptic import PanopticCounts, panoptic_counts
from densezoo.metrics._squares import SquaredErrors, psnr, squared_errors
from densezoo.metrics._tally import Tally
from densezoo.metrics._tiled import TiledCounts

__all__ = [
    "AngleCounts",
    "BoundaryCounts",
    "Collected",
    "Counts",
    "DepthSums",
    "PanopticCounts",
    "SquaredErrors",
    "Tally",
    "TiledCounts",
    "accuracy",
    "angle_counts",
    "average_precision",
    "boundary_band_counts",
    "boundary_counts",
    "boundary_f_score",
    "boundary_iou",
    "class_mean",
    "coco_annotations",
    "coco_dataset",
    "coco_results",
    "confusion_counts",
    "confusion_matrix",
    "depth_sums",
    "dice",
    "encode_mask",
    "iou",
    "mean_dice",
    "mean_iou",
    "multilabel_counts",
    "panoptic_counts",
    "pixel_accuracy",
    "precision",
    "predict",
    "psnr",
    "recall",
    "squared_errors",
]
