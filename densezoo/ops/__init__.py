"""Pure functions on arrays: no parameters, no modules."""

from densezoo.ops.anchors import grid_anchors, pyramid_anchors
from densezoo.ops.boxes import (
    box_area,
    box_iou,
    clip_boxes,
    complete_iou,
    decode_boxes,
    decode_distances,
    distance_iou,
    encode_boxes,
    encode_distances,
    generalized_iou,
    pair_iou,
)
from densezoo.ops.convolution import conv
from densezoo.ops.depth import align_scale_shift, measured, normals_from_depth, points_from_depth
from densezoo.ops.fused_linear import resize_concat_linear
from densezoo.ops.implementation import IMPLEMENTATIONS, implementation
from densezoo.ops.instances import crop_instances
from densezoo.ops.matching import BELOW, BETWEEN, match, sample_matches
from densezoo.ops.norm import batch_norm, group_norm
from densezoo.ops.panoptic import merge_segments
from densezoo.ops.paste import paste_masks
from densezoo.ops.pool import adaptive_avg_pool, avg_pool, global_avg_pool, max_pool, max_pool_with_indices, max_unpool
from densezoo.ops.reassemble import carafe
from densezoo.ops.regions import multiscale_roi_align, roi_align
from densezoo.ops.resize import resize_bicubic, resize_bilinear, resize_nearest
from densezoo.ops.sample import sample_bilinear
from densezoo.ops.suppression import batched_nms, nms
from densezoo.ops.transposed import conv_transpose, pixel_shuffle
from densezoo.ops.upsampled_conv import upsample_concat_conv

__all__ = [
    "BELOW",
    "BETWEEN",
    "IMPLEMENTATIONS",
    "align_scale_shift",
    "adaptive_avg_pool",
    "avg_pool",
    "batch_norm",
    "batched_nms",
    "box_area",
    "box_iou",
    "carafe",
    "clip_boxes",
    "complete_iou",
    "conv",
    "conv_transpose",
    "crop_instances",
    "decode_boxes",
    "decode_distances",
    "distance_iou",
    "encode_boxes",
    "encode_distances",
    "generalized_iou",
    "global_avg_pool",
    "grid_anchors",
    "group_norm",
    "implementation",
    "match",
    "max_pool",
    "max_pool_with_indices",
    "max_unpool",
    "measured",
    "merge_segments",
    "multiscale_roi_align",
    "nms",
    "normals_from_depth",
    "pair_iou",
    "paste_masks",
    "pixel_shuffle",
    "points_from_depth",
    "pyramid_anchors",
    "resize_bicubic",
    "resize_bilinear",
    "resize_concat_linear",
    "resize_nearest",
    "roi_align",
    "sample_bilinear",
    "sample_matches",
    "upsample_concat_conv",
]
