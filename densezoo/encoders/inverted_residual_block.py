"""The inverted residual block of MobileNets and EfficientNets."""

from typing import Literal

import flax.linen as nn
from jaxtyping import Array, Float

from densezoo.blocks import DropPath
from densezoo.types import Initializer, ModuleDef

Padding = Literal["SAME"] | tuple[tuple[int, int], tuple[int, int]] | None


class InvertedResidual(nn.Module):
    """Expanding 1x1 convolution, depthwise convolution, gate, projecting 1x1 convolution, and a shortcut.

    Attributes:
        features: channels of the result.
        hidden: channels of the depthwise convolution. If the input has as many, there is no first 1x1 convolution.
        kernel_size: of the depthwise convolution; so are strides, dilation and padding.
        conv: factory of convolutions with norm and activation.
        gate: factory of the squeeze-and-excitation, None for none.
        depthwise_init: initialiser of the depthwise convolution.
        drop_path: rate of stochastic depth in training.

    Sandler et al., MobileNetV2: Inverted residuals and linear bottlenecks, 2018. https://arxiv.org/abs/1801.04381
    """

    features: int
    hidden: int
    kernel_size: int
    strides: int
    dilation: int
    padding: Padding
    conv: ModuleDef
    gate: ModuleDef | None
    depthwise_init: Initializer
    drop_path: float = 0.0

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h2 w2 d"]:
        y = x
        if self.hidden != x.shape[-1]:
            y = self.conv(self.hidden, 1, name="expand")(y, train=train)
        y = self.conv(
            self.hidden,
            self.kernel_size,
            self.strides,
            self.dilation,
            groups=self.hidden,
            padding=self.padding,
            kernel_init=self.depthwise_init,
            name="depthwise",
        )(y, train=train)
        if self.gate is not None:
            y = y * self.gate(name="gate")(y)
        y = self.conv(self.features, 1, act=None, name="project")(y, train=train)
        if self.strides != 1 or x.shape[-1] != self.features:
            return y
        return x + DropPath(self.drop_path)(y, train=train)
