"""ResNet, ResNeXt and Wide ResNet, with torchvision's layout and names."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import BatchNorm, ConvNormAct, he_normal_fan_out
from densezoo.ops import max_pool
from densezoo.types import Dtype, ModuleDef, Pyramid, size_of


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, figure 5 left)."""

    features: int
    strides: int
    conv: ModuleDef
    act: Callable[[jax.Array], jax.Array]
    expansion = 1

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h2 w2 d"]:
        y = self.conv(self.features, strides=self.strides, name="conv1")(x, train=train)
        y = self.conv(self.features, act=None, name="conv2")(y, train=train)
        if self.strides != 1 or x.shape[-1] != y.shape[-1]:
            x = self.conv(self.features, 1, self.strides, act=None, name="downsample")(x, train=train)
        return self.act(x + y)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions and a shortcut; the stride is on the 3x3, as torchvision has it ("v1.5")."""

    features: int
    strides: int
    conv: ModuleDef
    act: Callable[[jax.Array], jax.Array]
    groups: int = 1
    group_width: int = 64
    expansion = 4

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h2 w2 d"]:
        width = self.features * self.group_width // 64 * self.groups
        y = self.conv(width, 1, name="conv1")(x, train=train)
        y = self.conv(width, 3, self.strides, groups=self.groups, name="conv2")(y, train=train)
        y = self.conv(self.features * self.expansion, 1, act=None, name="conv3")(y, train=train)
        if self.strides != 1 or x.shape[-1] != y.shape[-1]:
            x = self.conv(y.shape[-1], 1, self.strides, act=None, name="downsample")(x, train=train)
        return self.act(x + y)


class ResNet(nn.Module):
    """A residual network as an encoder: features at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image.

    Args (fields):
        stage_sizes: blocks in each of the four stages.
        block: `BasicBlock`, or `Bottleneck` (a partial of it with `groups` and `group_width` for ResNeXt).
        width: channels of the stem; the stages have 1, 2, 4, 8 times as many, before a bottleneck's expansion by 4.
        norm: factory of the normalisation, None for none.
        act: activation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoder = ResNet(stage_sizes=(2, 2, 2, 2), block=BasicBlock)
        >>> pyramid, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 65, 3)))
        >>> [feature.shape for feature in pyramid.features]
        [(1, 32, 33, 64), (1, 16, 17, 64), (1, 8, 9, 128), (1, 4, 5, 256), (1, 2, 3, 512)]

    References:
        He et al., Deep residual learning, 2015. https://arxiv.org/abs/1512.03385 (table 1)
        Xie et al., ResNeXt, 2016. https://arxiv.org/abs/1611.05431
        Zagoruyko and Komodakis, Wide residual networks, 2016. https://arxiv.org/abs/1605.07146
    """

    stage_sizes: Sequence[int]
    block: ModuleDef
    width: int = 64
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @property
    def reductions(self) -> tuple[int, ...]:
        """Image size over feature size, fine to coarse."""
        return tuple(2**level for level in range(1, len(self.stage_sizes) + 2))

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Pyramid:
        conv = partial(
            ConvNormAct,
            norm=self.norm,
            act=self.act,
            kernel_init=he_normal_fan_out,
            dtype=self.dtype,
            param_dtype=self.param_dtype,
        )
        x = conv(self.width, 7, 2, name="conv1")(images, train=train)
        features = [x]
        x = max_pool(x, 3, 2, 1)
        for stage, size in enumerate(self.stage_sizes):
            for index in range(size):
                x = self.block(
                    features=self.width * 2**stage,
                    strides=2 if stage > 0 and index == 0 else 1,
                    conv=conv,
                    act=self.act,
                    name=f"layer{stage + 1}_{index}",
                )(x, train=train)
            features.append(x)
        return Pyramid(tuple(features), None, self.reductions, size_of(images))


RESNETS = {
    # He et al. 2015, table 1
    "resnet18": partial(ResNet, stage_sizes=(2, 2, 2, 2), block=BasicBlock),
    "resnet34": partial(ResNet, stage_sizes=(3, 4, 6, 3), block=BasicBlock),
    "resnet50": partial(ResNet, stage_sizes=(3, 4, 6, 3), block=Bottleneck),
    "resnet101": partial(ResNet, stage_sizes=(3, 4, 23, 3), block=Bottleneck),
    "resnet152": partial(ResNet, stage_sizes=(3, 8, 36, 3), block=Bottleneck),
    # Xie et al. 2016, table 1; 101 32x8d is torchvision's
    "resnext50_32x4d": partial(ResNet, stage_sizes=(3, 4, 6, 3), block=partial(Bottleneck, groups=32, group_width=4)),
    "resnext101_32x8d": partial(ResNet, stage_sizes=(3, 4, 23, 3), block=partial(Bottleneck, groups=32, group_width=8)),
    # Zagoruyko and Komodakis 2016: the inner width doubled
    "wide_resnet50_2": partial(ResNet, stage_sizes=(3, 4, 6, 3), block=partial(Bottleneck, group_width=128)),
}
