"""The families of detectors with two stages: Faster and Mask R-CNN, and Panoptic FPN."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp

from densezoo.blocks import BatchNorm, GroupNorm
from densezoo.decoders.fpn import NEAREST, FPNNeck, PooledLevel
from densezoo.heads.dense import RPNHead
from densezoo.heads.region import BoxHead, MaskHead
from densezoo.heads.semantic import SemanticHead
from densezoo.models.detection import register_detector
from densezoo.models.panoptic import PanopticFPN
from densezoo.models.rcnn import RCNN
from densezoo.types import Dtype, ModuleDef


def two_stage(
    encoder: Any,
    num_classes: int,
    *,
    masks: bool = False,
    features: int = 256,
    levels: int = 4,
    upsample: ModuleDef = NEAREST,
    norm: ModuleDef | None = None,
    head_norm: ModuleDef | None = None,
    rpn_depth: int = 1,
    box_convs: int = 0,
    hidden: tuple[int, ...] = (1024, 1024),
    sizes: Sequence[Sequence[float]] | None = None,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    stuff_classes: int | None = None,
    stuff_area: int = 4096,
    semantic_features: int = 128,
    semantic_norm: ModuleDef | None = GroupNorm,
    impl: str = "auto",
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
) -> RCNN:
    """Creates a two-stage detector.

    Args:
        encoder: images -> `Pyramid`.
        num_classes: number of classes, including the background.
        masks: whether to add a mask head.
        features: channels of the pyramid.
        levels: number of the encoder's coarsest maps that the pyramid uses.
        upsample: factory of the upsampler in the pyramid.
        norm: factory of the normalisation in the pyramid.
        head_norm: factory of the normalisation in the convolutions of the heads.
        rpn_depth: number of 3x3 convolutions in the proposal head.
        box_convs: number of convolutions in the box head.
        hidden: features of the dense layers in the box head.
        sizes: sides of the anchors in pixels, a tuple for each map.
        ratios: heights over widths of the anchors.
        stuff_classes: number of stuff classes of an additional semantic branch; None for no branch.
        stuff_area: default of `dz.panoptic`, for a model with this branch.
        semantic_features: channels of the semantic branch.
        semantic_norm: factory of the normalisation in the semantic branch.
        impl: see `SegmentationModel`.
        dtype: dtype of the computation.
        param_dtype: dtype of the parameters.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes includes the background and must be at least 2, got {num_classes}")
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    levels = min(levels, len(getattr(encoder, "reductions", (4, 8, 16, 32))))
    parts = {
        "encoder": encoder,
        "neck": FPNNeck(features, levels, upsample, norm, PooledLevel, **dtypes),
        "rpn": RPNHead(sizes, ratios, rpn_depth, **dtypes),
        "box_head": BoxHead(num_classes, convs=box_convs, norm=head_norm, hidden=hidden, **dtypes),
        "mask_head": MaskHead(num_classes, features=features, norm=head_norm, **dtypes) if masks else None,
        "region_maps": levels,
    }
    if stuff_classes is None:
        return RCNN(**parts, impl=impl)
    semantic = SemanticHead(1 + stuff_classes, semantic_features, levels, norm=semantic_norm, **dtypes)
    return PanopticFPN(**parts, semantic_head=semantic, stuff_area=stuff_area, impl=impl)


_V2 = {"norm": BatchNorm, "head_norm": BatchNorm, "rpn_depth": 2, "box_convs": 4, "hidden": (1024,)}
_SKIPS = "adds 1x1 lateral convolutions of the encoder's maps; the size of a box selects its map"
_BENCHMARK = "Li et al. 2021, https://arxiv.org/abs/2111.11429"


def _family(name: str, description: str, excels_at: str, paper: str, encoder: str = "resnet50", **fields: Any) -> None:
    make = partial(two_stage, **fields)
    register_detector(name, make, description, _SKIPS, excels_at, paper, encoder=encoder)


_FASTER, _MASK = (
    "Ren et al. 2015, https://arxiv.org/abs/1506.01497",
    "He et al. 2017, https://arxiv.org/abs/1703.06870",
)
_family(
    "faster_rcnn",
    "A feature pyramid proposes boxes, and a head classifies and refines each.",
    "accurate boxes",
    _FASTER,
)
_family(
    "faster_rcnn_v2",
    "Faster R-CNN with batch norms in neck and head, and a head of convolutions.",
    "accurate boxes after long training",
    f"{_FASTER}; {_BENCHMARK}",
    **_V2,
)
_family(
    "faster_rcnn_mobilenet",
    "Faster R-CNN on the last two maps of MobileNetV3, both at 1/32 of the image, with anchors of all sizes on each.",
    "fast detection",
    f"{_FASTER}; Howard et al. 2019, https://arxiv.org/abs/1905.02244",
    "mobilenet_v3_large",
    levels=2,
    sizes=((32, 64, 128, 256, 512),) * 3,
)
_family(
    "mask_rcnn",
    "Faster R-CNN with a small mask for each box.",
    "individual objects with masks",
    _MASK,
    masks=True,
)
_family(
    "mask_rcnn_v2",
    "Mask R-CNN with batch norms in neck and heads, and a box head of convolutions.",
    "individual objects with masks, after long training",
    f"{_MASK}; {_BENCHMARK}",
    masks=True,
    **_V2,
)
_family(
    "panoptic_fpn",
    "Mask R-CNN with a semantic branch on the same pyramid: a segment for every pixel.",
    "objects and background regions together",
    "Kirillov et al. 2019, https://arxiv.org/abs/1901.02446",
    masks=True,
    stuff_classes=53,
)
