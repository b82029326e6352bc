"""Single-stage detectors, which predict boxes and classes for every anchor: RetinaNet, FCOS, one on a single map."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Array, Float, Integer

from densezoo.blocks import ConvNormAct, GroupNorm
from densezoo.decoders.fpn import NEAREST, ConvLevels, FPNNeck
from densezoo.heads.anchors import AnchorOutputs, PointOutputs
from densezoo.heads.dense import FCOSHead, RetinaNetHead
from densezoo.models.detection import of_anchors, pyramid_of, register_detector
from densezoo.models.padding import each_alone
from densezoo.models.segmentation import computed_by
from densezoo.naming import Naming
from densezoo.types import Detections, Dtype, ModuleDef, Pyramid


class SingleStage(nn.Module):
    """A single-stage detector: predicts scores and boxes for every anchor of a feature pyramid.

    Attributes:
        encoder: images -> `Pyramid`.
        neck: `Pyramid` -> maps, such as `FPNNeck`.
        head: (`Pyramid`, extents) -> `AnchorOutputs` or `PointOutputs`, such as `RetinaNetHead`.
        score_threshold: default of `dz.detect`.
        nms_threshold: default of `dz.detect`.
        max_detections: default of `dz.detect`.
        candidates: number of boxes of each map that enter the suppression.
        frozen: as in `SegmentationModel`.
        impl: as in `SegmentationModel`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = dz.create_model("fcos", "resnet18", num_classes=3)
        >>> outputs, _ = jax.eval_shape(model.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 96, 3)))
        >>> outputs.logits.shape, outputs.distances.shape, outputs.grid.counts
        ((1, 129, 3), (1, 129, 4), (96, 24, 6, 2, 1))
    """

    encoder: nn.Module
    neck: nn.Module
    head: nn.Module
    score_threshold: float = 0.05
    nms_threshold: float = 0.5
    max_detections: int = 300
    candidates: int = 1000
    frozen: tuple[str, ...] = ()
    impl: str = "auto"

    def __call__(
        self, images: Float[Array, "b h w c"], sizes: Integer[Array, "b 2"] | None = None, *, train: bool = False
    ) -> AnchorOutputs | PointOutputs:
        """Returns the head's predictions. See `dz.detect` for `sizes`."""
        with computed_by(self):
            pyramid, extents, sizes_of = pyramid_of(self, images, sizes, train=train)
            assert pyramid.image_size is not None
            with each_alone(None if train else extents, pyramid.image_size):
                outputs: Any = self.head(pyramid, extents, train=train and "head" not in self.frozen)
            return outputs.replace(sizes=sizes_of)

    def detect(
        self,
        images: Float[Array, "b h w c"],
        sizes: Integer[Array, "b 2"] | None = None,
        *,
        score_threshold: Any = None,
        nms_threshold: Any = None,
        max_detections: int | None = None,
        train: bool = False,
    ) -> Detections:
        """See `dz.detect`. Always runs in inference mode."""
        del train
        return of_anchors(
            self(images, sizes),
            self.score_threshold if score_threshold is None else score_threshold,
            self.nms_threshold if nms_threshold is None else nms_threshold,
            self.max_detections if max_detections is None else max_detections,
            self.candidates,
        )


class PlainNeck(nn.Module):
    """A neck without a pyramid: a convolution of one of the encoder's maps.

    Attributes:
        features: channels of the map.
        level: which of the encoder's maps, -1 for the coarsest.
        norm: factory of the normalisation, None for none.
    """

    features: int = 256
    level: int = -1
    norm: ModuleDef | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, *, train: bool = False) -> tuple[Float[Array, "b h w c"]]:
        conv = ConvNormAct(self.features, norm=self.norm, dtype=self.dtype, param_dtype=self.param_dtype, name="conv")
        return (conv(pyramid.maps[self.level], train=train),)

    def scales(self, reductions: Sequence[int]) -> tuple[int, ...]:
        """Image size over map size."""
        return (reductions[self.level],)

    def reference_names(self) -> list[Naming]:
        """Empty: no reference has this neck."""
        return []


def _retinanet(
    encoder: Any,
    num_classes: int,
    *,
    features: int = 256,
    upsample: ModuleDef = NEAREST,
    norm: ModuleDef | None = None,
    head_norm: ModuleDef | None = None,
    depth: int = 4,
    from_encoder: bool = False,
    sizes: Sequence[Sequence[float]] | None = None,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    box_loss: str = "l1",
    impl: str = "auto",
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
) -> SingleStage:
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    neck = _neck(encoder, features, upsample, norm, from_encoder, dtypes)
    head = RetinaNetHead(num_classes, sizes, ratios, depth, head_norm, box_loss, **dtypes)
    return SingleStage(encoder, neck, head, impl=impl)


def _fcos(
    encoder: Any,
    num_classes: int,
    *,
    features: int = 256,
    upsample: ModuleDef = NEAREST,
    norm: ModuleDef | None = None,
    head_norm: ModuleDef | None = GroupNorm,
    depth: int = 4,
    impl: str = "auto",
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
) -> SingleStage:
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    neck = _neck(encoder, features, upsample, norm, False, dtypes)
    head = FCOSHead(num_classes, None, depth, head_norm, **dtypes)
    return SingleStage(encoder, neck, head, 0.2, 0.6, 100, impl=impl)


def _plain(
    encoder: Any,
    num_classes: int,
    *,
    features: int = 256,
    level: int = -1,
    norm: ModuleDef | None = None,
    head_norm: ModuleDef | None = None,
    depth: int = 4,
    sizes: Sequence[float] | None = None,
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
    box_loss: str = "l1",
    impl: str = "auto",
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
) -> SingleStage:
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    # The anchor sizes of all of RetinaNet's maps.
    every = sizes or tuple(int(2.0 ** (5 + step / 3)) for step in range(15))
    head = RetinaNetHead(num_classes, (tuple(every),), ratios, depth, head_norm, box_loss, **dtypes)
    return SingleStage(encoder, PlainNeck(features, level, norm, **dtypes), head, impl=impl)


def _neck(encoder: Any, features: int, upsample: Any, norm: Any, from_encoder: bool, dtypes: Any) -> FPNNeck:
    levels = min(3, len(getattr(encoder, "reductions", (8, 16, 32))))  # from C3 on
    extra = partial(ConvLevels, from_encoder=from_encoder)
    return FPNNeck(features, levels, upsample, norm, extra, **dtypes)


_SKIPS = "adds 1x1 lateral convolutions of the encoder's maps; the head reads every scale"
_RETINANET = "Lin et al. 2017, https://arxiv.org/abs/1708.02002"

register_detector(
    "retinanet",
    _retinanet,
    "A feature pyramid that predicts classes and boxes for nine anchors at every pixel.",
    _SKIPS,
    "boxes of objects of any size, in one stage",
    _RETINANET,
)
register_detector(
    "retinanet_v2",
    partial(_retinanet, head_norm=GroupNorm, from_encoder=True, box_loss="giou"),
    "RetinaNet with group norms in its head, P6 from the encoder, and a GIoU loss for the boxes.",
    _SKIPS,
    "more accurate boxes than the first version, at the same cost",
    f"{_RETINANET}; Zhang et al. 2019, https://arxiv.org/abs/1912.02424",
)
register_detector(
    "fcos",
    _fcos,
    "A feature pyramid that predicts classes and the distances to the box's sides at every pixel.",
    _SKIPS,
    "boxes without anchors to tune",
    "Tian et al. 2020, https://arxiv.org/abs/2006.09214",
)
register_detector(
    "plain_detector",
    _plain,
    "RetinaNet's head on one map of the encoder, with the anchors of all scales.",
    "none: only the coarsest map",
    "measuring the benefit of a pyramid",
    "Lin et al. 2016, https://arxiv.org/abs/1612.03144 (figure 1b)",
    misfit=lambda encoder: "",
)
