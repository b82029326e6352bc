"""ResNet, ResNeXt, Wide ResNet, ResNet-D and SE-ResNet, with torchvision's and timm's layout and names."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import (
    BatchNorm,
    ChannelGate,
    ConvNormAct,
    DropPath,
    drop_path_rates,
    he_normal_fan_out,
    run_block,
)
from densezoo.deprecation import renamed
from densezoo.encoders.base import Encoder, register_encoders
from densezoo.naming import Naming, Rule, backbone, dilated, ignoring
from densezoo.ops import avg_pool, max_pool
from densezoo.types import Dtype, Initializer, ModuleDef, Pyramid, size_of


class _Block(nn.Module):
    """The base class of residual blocks, which adds the shortcut to a branch of convolutions.

    Attributes:
        features: channels of the 3x3 convolutions.
        strides: strides of the first 3x3 convolution and of the shortcut.
        conv: factory of convolutions with norm and activation.
        act: activation after the sum.
        dilations: dilation of the first 3x3 convolution, and dilation of the block's stage.
        gate: factory of the squeeze-and-excitation of the branch, None for none.
        last: factory of the last convolution of the branch, None for `conv`.
        average_down: whether a strided shortcut averages 2x2 pixels instead of skipping pixels.
        drop_path: rate of stochastic depth in training.
    """

    features: int
    strides: int
    conv: ModuleDef
    act: Callable[[jax.Array], jax.Array]
    dilations: tuple[int, int] = (1, 1)
    gate: ModuleDef | None = None
    average_down: bool = False
    drop_path: float = 0.0
    last: ModuleDef | None = None
    expansion = 1

    def join(self, x: jax.Array, y: jax.Array, *, train: bool) -> jax.Array:
        """Adds the branch's result `y` and the block's input `x`, which the shortcut brings to the same shape."""
        channels, strides = y.shape[-1], self.strides
        if self.gate is not None:
            # timm's rounding; a 16th in every network of the table.
            y = y * self.gate(max(8, (channels // 16 + 4) // 8 * 8), name="se")(y)
        y = DropPath(self.drop_path)(y, train=train)
        if strides != 1 or x.shape[-1] != channels:
            if self.average_down and strides != 1:
                # A window partly beyond the edge averages the pixels inside.
                x = jnp.pad(x, ((0, 0), *((0, side % 2) for side in size_of(x)), (0, 0)), mode="edge")
                x, strides = avg_pool(x), 1
            elif self.average_down and self.dilations[1] != 1:
                # In dilated stages, timm includes zeros beyond the edge.
                x = avg_pool(jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0))), 2, stride=1)
            x = self.conv(channels, 1, strides, act=None, name="downsample")(x, train=train)
        return self.act(x + y)


class BasicBlock(_Block):
    """Two 3x3 convolutions and a shortcut (He et al. 2015, figure 5 left)."""

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h2 w2 d"]:
        first, second = self.dilations
        y = self.conv(self.features, strides=self.strides, dilation=first, name="conv1")(x, train=train)
        y = (self.last or self.conv)(self.features, dilation=second, act=None, name="conv2")(y, train=train)
        return self.join(x, y, train=train)


class Bottleneck(_Block):
    """1x1, 3x3, 1x1 convolutions and a shortcut; the stride is on the 3x3, as in torchvision ("v1.5")."""

    groups: int = 1
    group_width: int = 64
    expansion = 4

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h2 w2 d"]:
        width = self.features * self.group_width // 64 * self.groups
        y = self.conv(width, 1, name="conv1")(x, train=train)
        y = self.conv(width, 3, self.strides, self.dilations[0], self.groups, name="conv2")(y, train=train)
        y = (self.last or self.conv)(self.features * self.expansion, 1, act=None, name="conv3")(y, train=train)
        return self.join(x, y, train=train)


@renamed(stage_sizes="depths")
class ResNet(Encoder):
    """A residual network as an encoder: maps at 1/2, 1/4, 1/8, 1/16 and 1/32 of the image.

    Attributes:
        depths: blocks in each of the four stages.
        block: `BasicBlock`, or `Bottleneck` (a partial of it with `groups` and `group_width` for ResNeXt).
        width: channels of the stem; the stages have 1, 2, 4, 8 times as many, before a bottleneck's expansion by 4.
        deep_stem: whether to use three 3x3 convolutions instead of the first 7x7 one, as in ResNet-D.
        average_down: whether to use 2x2 means in the shortcuts, as in ResNet-D.
        squeeze_excite: whether to gate the channels in each block, as in SE-ResNet.
        coarsest: 8 builds no stages beyond 1/8 of the image; 32 builds all.
        output_stride: 8 or 16 limits the reduction of the later stages; dilation replaces their strides.
        dilate_first: whether dilation starts with the first 3x3 convolution of such a stage, as in
          segmentation_models_pytorch, or with the second, as in torchvision and timm.
        norm: factory of the normalisation, None for none.
        act: activation.
        drop_path: rate of stochastic depth in the last block; the rates increase linearly from 0.
        remat: recomputes each block in the backward pass, to save memory.
        zero_init_last: whether the scale of each block's last norm starts at zero, so that the block starts as its
          shortcut, as in timm, but not in torchvision and segmentation_models_pytorch.
        kernel_init: initialiser of the convolutions.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoder = ResNet(depths=(2, 2, 2, 2), block=BasicBlock)
        >>> pyramid, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 65, 3)))
        >>> [x.shape for x in pyramid.maps]
        [(1, 32, 33, 64), (1, 16, 17, 64), (1, 8, 9, 128), (1, 4, 5, 256), (1, 2, 3, 512)]
        >>> encoder.clone(output_stride=8).reductions, encoder.clone(coarsest=8).reductions
        ((2, 4, 8, 8, 8), (2, 4, 8))

    References:
        He et al., Deep residual learning, 2015. https://arxiv.org/abs/1512.03385 (table 1)
        Xie et al., ResNeXt, 2016. https://arxiv.org/abs/1611.05431
        Zagoruyko and Komodakis, Wide residual networks, 2016. https://arxiv.org/abs/1605.07146
        He et al., Bag of tricks (ResNet-D), 2018. https://arxiv.org/abs/1812.01187 (figure 2)
        Hu et al., Squeeze-and-excitation networks, 2017. https://arxiv.org/abs/1709.01507
    """

    depths: Sequence[int]
    block: ModuleDef
    width: int = 64
    deep_stem: bool = False
    average_down: bool = False
    squeeze_excite: bool = False
    coarsest: int = 32
    output_stride: int = 32
    dilate_first: bool = True
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    drop_path: float = 0.0
    remat: bool = False
    zero_init_last: bool = False
    kernel_init: Initializer = he_normal_fan_out  # torchvision's and timm's
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    stem = "conv1/conv"

    @property
    def scales(self) -> tuple[int, ...]:
        return tuple(2**level for level in range(1, len(self.depths) + 2))

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Pyramid:
        self.check(images)
        fields = {"kernel_init": self.kernel_init, "dtype": self.dtype, "param_dtype": self.param_dtype}
        conv = partial(ConvNormAct, norm=self.norm, act=self.act, **fields)
        if self.deep_stem:
            x = conv(self.width // 2, 3, 2, name="conv1")(images, train=train)
            x = conv(self.width // 2, name="conv2")(x, train=train)
            x = conv(self.width, name="conv3")(x, train=train)
        else:
            x = conv(self.width, 7, 2, name="conv1")(images, train=train)
        maps = [x]
        last = conv
        if self.zero_init_last and self.norm is not None:
            last = partial(conv, norm=partial(self.norm, scale_init=nn.initializers.zeros))
        rates = iter(drop_path_rates(self.drop_path, sum(self.depths)))
        dilation = 1
        for stage, size in enumerate(self.depths[: len(self.reductions) - 1]):
            x = self.pool(x) if stage == 0 else x
            reduction = 2 ** (stage + 2)
            previous, dilation = dilation, max(1, reduction // self.output_stride)
            for index in range(size):
                block = self.block(
                    features=self.width * 2**stage,
                    strides=2 if stage > 0 and index == 0 and dilation == 1 else 1,
                    dilations=(dilation if index > 0 or self.dilate_first else previous, dilation),
                    conv=conv,
                    gate=partial(ChannelGate, **fields) if self.squeeze_excite else None,
                    act=self.act,
                    average_down=self.average_down,
                    drop_path=next(rates),
                    last=last,
                    name=f"layer{stage + 1}_{index}",
                )
                x = run_block(block, x, train=train, remat=self.remat)
            maps.append(x)
        return self.pyramid(images, maps)

    def pool(self, x: jax.Array) -> jax.Array:
        """The max-pooling between the stem and the first stage."""
        return max_pool(x, 3, 2, 1)

    def reference_names(self) -> list[Naming]:
        """Parameter names of torchvision and timm."""
        stem = [Rule(r"conv1/conv", "conv1"), Rule(r"conv1/norm", "bn1")]
        if self.deep_stem:
            stem = [
                Rule(r"conv1/conv", "conv1.0"),
                Rule(r"conv1/norm", "conv1.1"),
                Rule(r"conv2/conv", "conv1.3"),
                Rule(r"conv2/norm", "conv1.4"),
                Rule(r"conv3/conv", "conv1.6"),
                Rule(r"conv3/norm", "bn1"),
            ]
        of_timm = self.deep_stem or self.average_down or self.squeeze_excite
        namings = self.ignoring_deeper(backbone([*stem, *self.block_rules("se")], wrapped=of_timm))
        as_there = self.output_stride == 8 and not self.dilate_first
        return namings if as_there else dilated(namings, 8, dilate_first=False)

    def block_rules(self, gate: str) -> list[Rule]:
        """The rules for the stages. The references only differ in the name of the squeeze-and-excitation."""
        pooled = int(self.average_down)  # the pooling is part of the sequence
        return [
            Rule(r"layer(\d)_(\d+)/conv(\d)/conv", r"layer\1.\2.conv\3"),
            Rule(r"layer(\d)_(\d+)/conv(\d)/norm", r"layer\1.\2.bn\3"),
            Rule(r"layer(\d)_(\d+)/downsample/conv", rf"layer\1.\2.downsample.{pooled}"),
            Rule(r"layer(\d)_(\d+)/downsample/norm", rf"layer\1.\2.downsample.{pooled + 1}"),
            Rule(r"layer(\d)_(\d+)/se/reduce", rf"layer\1.\2.{gate}.fc1"),
            Rule(r"layer(\d)_(\d+)/se/expand", rf"layer\1.\2.{gate}.fc2"),
        ]

    def ignoring_deeper(self, namings: Sequence[Naming]) -> list[Naming]:
        """The namings without the stages that a smaller `coarsest` omits."""
        return ignoring(namings, rf"layer[{len(self.reductions)}-9]\..*")


# He et al. 2015, table 1
_BASIC = {"18": (2, 2, 2, 2), "34": (3, 4, 6, 3)}
_DEEP = {"50": (3, 4, 6, 3), "101": (3, 4, 23, 3), "152": (3, 8, 36, 3)}

# Only timm has ResNet-D and this SE-ResNet, so they follow its rules for dilation and initialisation.
_timm = partial(ResNet, dilate_first=False, zero_init_last=True)
_resnet_d = partial(_timm, deep_stem=True, average_down=True)

register_encoders(
    {
        **{f"resnet{depth}": partial(ResNet, depths=sizes, block=BasicBlock) for depth, sizes in _BASIC.items()},
        **{f"resnet{depth}": partial(ResNet, depths=sizes, block=Bottleneck) for depth, sizes in _DEEP.items()},
        # Xie et al. 2016, table 1; 101 32x8d is torchvision's
        "resnext50_32x4d": partial(ResNet, depths=(3, 4, 6, 3), block=partial(Bottleneck, groups=32, group_width=4)),
        "resnext101_32x8d": partial(ResNet, depths=(3, 4, 23, 3), block=partial(Bottleneck, groups=32, group_width=8)),
        # Zagoruyko and Komodakis 2016: the inner width doubled
        "wide_resnet50_2": partial(ResNet, depths=(3, 4, 6, 3), block=partial(Bottleneck, group_width=128)),
        # He et al. 2018; 26 is timm's: 18's stages of bottlenecks
        **{f"resnet{depth}d": partial(_resnet_d, depths=sizes, block=BasicBlock) for depth, sizes in _BASIC.items()},
        "resnet26d": partial(_resnet_d, depths=_BASIC["18"], block=Bottleneck),
        **{f"resnet{depth}d": partial(_resnet_d, depths=sizes, block=Bottleneck) for depth, sizes in _DEEP.items()},
        # Hu et al. 2017, table 1, as timm has them
        **{
            f"seresnet{depth}": partial(_timm, depths=sizes, block=Bottleneck, squeeze_excite=True)
            for depth, sizes in _DEEP.items()
        },
    }
)
