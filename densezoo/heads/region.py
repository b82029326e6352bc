"""Heads on the feature maps of regions: the box head and the mask head of Faster and Mask R-CNN."""

import re
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import Conv, ConvNormAct, TransposedConv, he_normal_fan_out, torch_bias, torch_uniform
from densezoo.naming import DETECTORS, Naming, Rule
from densezoo.ops.sharding import reshape
from densezoo.types import Dtype, ModuleDef

BOX_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
"""Factors of the second stage's deltas."""


class BoxOutputs(NamedTuple):
    """What a box head predicts for each of n regions.

    Attributes:
        logits: logits of each class.
        deltas: an encoded box for each class.
    """

    logits: Float[Array, "n k"]
    deltas: Float[Array, "n k 4"]


class BoxHead(nn.Module):
    """The box head: class logits of a region, with class 0 for background, and an encoded box for each class.

    Attributes:
        num_classes: channels of the scores, including the background.
        size: side of the regions' maps, 7x7 by default.
        convs: number of 3x3 convolutions before the dense layers.
        norm: factory of the normalisation after each of these convolutions.
        hidden: features of each dense layer.

    References:
        Girshick, Fast R-CNN, 2015. https://arxiv.org/abs/1504.08083
    """

    num_classes: int
    size: int = 7
    convs: int = 0
    norm: ModuleDef | None = None
    hidden: tuple[int, ...] = (1024, 1024)
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n s s c"], *, train: bool = False) -> BoxOutputs:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        for index in range(self.convs):
            conv = ConvNormAct(
                x.shape[-1], norm=self.norm, kernel_init=he_normal_fan_out, name=f"conv{index}", **dtypes
            )
            x = conv(x, train=train)
        x = reshape(x.transpose(0, 3, 1, 2), x.shape[0], -1)  # torch's order, for compatible weights

        def dense(features: int, x: jax.Array, name: str) -> jax.Array:
            layer = nn.Dense(
                features, kernel_init=torch_uniform, bias_init=torch_bias(x.shape[-1]), name=name, **dtypes
            )
            return layer(x)

        for index, features in enumerate(self.hidden):
            x = nn.relu(dense(features, x, f"fc{index}"))
        logits = dense(self.num_classes, x, "logits").astype(jnp.float32)
        deltas = dense(4 * self.num_classes, x, "deltas").astype(jnp.float32)
        return BoxOutputs(logits, reshape(deltas, -1, self.num_classes, 4))

    def reference_names(self) -> list[Naming]:
        """Parameter names of torchvision's detectors."""

        def number(match: re.Match[str]) -> str:
            index = int(match[1])
            # In a sequence after convolutions, behind the flattening, each with a ReLU; else fc6 and fc7.
            return f"head.{self.convs + 1 + 2 * index}" if self.convs else f"head.fc{6 + index}"

        rules = [
            Rule(r"conv(\d)/conv", r"head.\1.0"),
            Rule(r"conv(\d)/norm", r"head.\1.1"),
            Rule(r"fc(\d)", number),
            Rule("logits", "predictor.cls_score"),
            Rule("deltas", "predictor.bbox_pred"),
        ]
        return [Naming(DETECTORS, rules, "roi_heads.box_")]


class MaskHead(nn.Module):
    """The mask head: a mask for each class, twice the size of the region's maps.

    Attributes:
        num_classes: channels of the masks, including the background.
        size: side of the regions' maps, 14x14 by default.
        features: channels of the convolutions.
        convs: number of convolutions before the transposed one.
        norm: factory of the normalisation after each of these convolutions.

    References:
        He et al., Mask R-CNN, 2017. https://arxiv.org/abs/1703.06870 (figure 4, right)
    """

    num_classes: int
    size: int = 14
    features: int = 256
    convs: int = 4
    norm: ModuleDef | None = None
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "n s s c"], *, train: bool = False) -> Float[Array, "n _ _ k"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        init = {"kernel_init": he_normal_fan_out}
        conv = partial(ConvNormAct, self.features, norm=self.norm, **init, **dtypes)
        for index in range(self.convs):
            x = conv(name=f"conv{index}")(x, train=train)
        double = (2 * x.shape[1], 2 * x.shape[2])
        x = nn.relu(TransposedConv(2, name="upsample", **init, **dtypes)(x, double))
        return Conv(self.num_classes, 1, name="logits", **init, **dtypes)(x).astype(jnp.float32)

    def reference_names(self) -> list[Naming]:
        """Parameter names of torchvision's detectors, before version 0.13 too."""
        predictor = [
            Rule("upsample", "predictor.conv5_mask", "conv_transpose"),
            Rule("logits", "predictor.mask_fcn_logits"),
        ]
        new = [Rule(r"conv(\d)/conv", r"head.\1.0"), Rule(r"conv(\d)/norm", r"head.\1.1")]
        old = [Rule(r"conv(\d)/conv", lambda match: f"head.mask_fcn{int(match[1]) + 1}")]
        return [Naming(DETECTORS, [*form, *predictor], "roi_heads.mask_") for form in (new, old)]
