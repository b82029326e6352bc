"""ConvNeXt V1 and V2, with timm's layout and names."""

import re
from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import Conv, DropPath, LayerNorm, drop_path_rates, run_block, truncated_normal
from densezoo.deprecation import renamed
from densezoo.encoders.base import Encoder, register_encoders
from densezoo.naming import COLUMN, SMP, TIMM, TRANSFORMERS, Naming, Rule
from densezoo.types import Dtype, Pyramid, accumulator_dtype

_gelu = partial(nn.gelu, approximate=False)


class GlobalResponseNorm(nn.Module):
    """Scales each channel by its norm over the image, relative to the other channels. Initially the identity.

    Norms are computed in float32. Woo et al., ConvNeXt V2, 2023. https://arxiv.org/abs/2301.00808
    """

    epsilon: float = 1e-6
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],), self.param_dtype)
        wide = x.astype(accumulator_dtype(x.dtype))
        scale, bias = (jnp.expand_dims(p.astype(wide.dtype), (0, 1, 2)) for p in (scale, bias))
        squares = jnp.square(wide).sum((1, 2), keepdims=True)
        # The gradient of a channel of zeros is zero; that of the root would be infinite.
        some = squares > 0
        norms = jnp.where(some, jnp.sqrt(jnp.where(some, squares, 1.0)), 0.0)
        share = norms / (norms.mean(-1, keepdims=True) + self.epsilon)
        return (wide + scale * (wide * share) + bias).astype(x.dtype if self.dtype is None else self.dtype)


class ConvNeXtBlock(nn.Module):
    """A depthwise 7x7 convolution, a norm, two linear layers, and a shortcut (Liu et al., figure 4).

    Attributes:
        dilation: dilation of the depthwise convolution. The other fields are those of `ConvNeXt`.
    """

    dilation: int = 1
    grn: bool = False
    layer_scale: float | None = 1e-6
    conv_mlp: bool = False
    act: Callable[[jax.Array], jax.Array] = _gelu
    drop_path: float = 0.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], *, train: bool = False) -> Float[Array, "b h w c"]:
        channels = x.shape[-1]
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        fields = {"kernel_init": truncated_normal, **dtypes}
        linear = partial(Conv, kernel_size=1, **fields) if self.conv_mlp else partial(nn.Dense, **fields)
        y = Conv(channels, 7, dilation=self.dilation, groups=channels, name="conv_dw", **fields)(x)
        y = LayerNorm(name="norm", **dtypes)(y)
        y = self.act(linear(4 * channels, name="fc1")(y))
        if self.grn:
            y = GlobalResponseNorm(name="grn", **dtypes)(y)
        y = linear(channels, name="fc2")(y)
        if self.layer_scale is not None:
            gamma = self.param("gamma", nn.initializers.constant(self.layer_scale), (channels,), self.param_dtype)
            y = y * jnp.expand_dims(gamma.astype(y.dtype), (0, 1, 2))
        return x + DropPath(self.drop_path)(y, train=train)


@renamed(stage_sizes="depths", widths="dims")
class ConvNeXt(Encoder):
    """A convolutional network built like a transformer, as an encoder: maps at 1/4, 1/8, 1/16 and 1/32.

    The patches of the stem and of the downsampling layers do not overlap and have no padding: sides are rounded down.

    Attributes:
        depths: blocks in each of the four stages.
        dims: channels of each stage.
        grn: whether to use global response normalisation in each block, as in V2.
        layer_scale: initial value of the learned factor per channel of each block; None for no factor, as in V2.
        conv_mlp: whether to use 1x1 convolutions instead of linear layers. They compute the same, but timm's weights of
          the sizes below tiny have their shape.
        act: activation.
        drop_path: rate of stochastic depth in the last block; the rates increase linearly from 0.
        coarsest: reduction of the last stage to build, without dilation: 4, 8, 16 or 32.
        output_stride: 8 or 16 limits the reduction; later stages use dilated convolutions instead of downsampling.
        remat: recomputes each block in the backward pass, to save memory.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> encoder = ConvNeXt(depths=(1, 1, 1, 1), dims=(8, 16, 32, 64))
        >>> pyramid, _ = jax.eval_shape(encoder.init_with_output, jax.random.key(0), jnp.zeros((1, 64, 99, 3)))
        >>> [x.shape for x in pyramid.maps]
        [(1, 16, 24, 8), (1, 8, 12, 16), (1, 4, 6, 32), (1, 2, 3, 64)]

    References:
        Liu et al., A ConvNet for the 2020s, 2022. https://arxiv.org/abs/2201.03545
        Woo et al., ConvNeXt V2, 2023. https://arxiv.org/abs/2301.00808
    """

    depths: Sequence[int]
    dims: Sequence[int]
    grn: bool = False
    layer_scale: float | None = 1e-6
    conv_mlp: bool = False
    act: Callable[[jax.Array], jax.Array] = _gelu
    drop_path: float = 0.0
    coarsest: int = 32
    output_stride: int = 32
    remat: bool = False
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32
    scales = (4, 8, 16, 32)  # pyright: ignore[reportAssignmentType]
    stem = "stem_conv"

    @property
    def min_size(self) -> int:
        """The smallest image side that can be downsampled by all stages."""
        return self.reductions[-1]

    @nn.compact
    def __call__(self, images: Float[Array, "b h w c"], *, train: bool = False) -> Pyramid:
        self.check(images)
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        fields = {"kernel_init": truncated_normal, **dtypes}  # biases start at zero, as in timm
        x = Conv(self.dims[0], 4, 4, padding=0, name="stem_conv", **fields)(images)
        x = LayerNorm(name="stem_norm", **dtypes)(x)
        rates = iter(drop_path_rates(self.drop_path, sum(self.depths)))
        maps, dilation = [], 1
        for stage in range(len(self.reductions)):
            if stage > 0:
                # As in timm, the replaced downsampling layer has half the dilation of the blocks after it.
                strides = self.reductions[stage] // self.reductions[stage - 1]
                before, dilation = dilation, dilation * (2 // strides)
                x = LayerNorm(name=f"stage{stage}_downsample_norm", **dtypes)(x)
                x = Conv(
                    self.dims[stage],
                    2,
                    strides,
                    dilation=before,
                    padding=0 if strides == 2 else "SAME",
                    name=f"stage{stage}_downsample_conv",
                    **fields,
                )(x)
            for index in range(self.depths[stage]):
                block = ConvNeXtBlock(
                    dilation,
                    self.grn,
                    self.layer_scale,
                    self.conv_mlp,
                    self.act,
                    next(rates),
                    name=f"stage{stage}_block{index}",
                    **dtypes,
                )
                x = run_block(block, x, train=train, remat=self.remat)
            maps.append(x)
        return self.pyramid(images, maps)

    def reference_names(self) -> list[Naming]:
        """Parameter names of timm and, of the first version, of torchvision and transformers."""

        def naming(source: str, prefix: str, dot: str) -> Naming:
            block = r"stage(\d)_block(\d+)"
            rules = [
                Rule(r"stem_conv", f"stem{dot}0"),
                Rule(r"stem_norm", f"stem{dot}1"),
                Rule(r"stage(\d)_downsample_norm", rf"stages{dot}\1.downsample.0"),
                Rule(r"stage(\d)_downsample_conv", rf"stages{dot}\1.downsample.1"),
                Rule(rf"{block}/(conv_dw|norm|gamma)", rf"stages{dot}\1.blocks.\2.\3"),
                Rule(rf"{block}/(fc1|grn|fc2)", rf"stages{dot}\1.blocks.\2.mlp.\3"),
            ]
            # The classifier, and stages that this encoder omits.
            others = rf"(norm_pre|head)\..*|stages{re.escape(dot)}[{len(self.reductions)}-9]\..*"
            return Naming(source, rules, prefix, rf"{re.escape(prefix)}({others})")

        # timm's `features_only` flattens lists of modules: `stages.0` becomes `stages_0`.
        places = [(TIMM, "", "."), (TIMM, "", "_"), (SMP, "encoder.model.", "_"), (SMP, "encoder.model.", ".")]
        namings = [naming(*place) for place in [*places, (SMP, "encoder.", "."), (SMP, "encoder.", "_")]]
        return namings if self.grn else [*namings, self._torchvision(), self._transformers()]

    def _transformers(self) -> Naming:
        """Parameter names of a backbone of transformers."""
        block, layer = r"stage(\d)_block(\d+)", r"encoder.stages.\1.layers.\2"
        rules = [
            Rule("stem_conv", "embeddings.patch_embeddings"),
            Rule("stem_norm", "embeddings.layernorm"),
            Rule(r"stage(\d)_downsample_norm", r"encoder.stages.\1.downsampling_layer.0"),
            Rule(r"stage(\d)_downsample_conv", r"encoder.stages.\1.downsampling_layer.1"),
            Rule(rf"{block}/conv_dw", rf"{layer}.dwconv"),
            Rule(rf"{block}/norm", rf"{layer}.layernorm"),
            Rule(rf"{block}/fc(\d)", rf"{layer}.pwconv\3"),
            Rule(rf"{block}/gamma", rf"{layer}.layer_scale_parameter"),
        ]
        return Naming(TRANSFORMERS, rules, "backbone.", r"backbone\.hidden_states_norms\..*")

    def _torchvision(self) -> Naming:
        block = r"stage(\d)_block(\d+)"
        parts = {"conv_dw": "block.0", "norm": "block.2", "fc1": "block.3", "fc2": "block.5", "gamma": "layer_scale"}

        def part(match: re.Match[str]) -> str:
            return f"features.{2 * int(match[1]) + 1}.{match[2]}.{parts[match[3]]}"

        rules = [
            Rule(r"stem_conv", "features.0.0"),
            Rule(r"stem_norm", "features.0.1"),
            Rule(r"stage(\d)_downsample_norm", lambda match: f"features.{2 * int(match[1])}.0"),
            Rule(r"stage(\d)_downsample_conv", lambda match: f"features.{2 * int(match[1])}.1"),
            Rule(rf"{block}/(conv_dw|norm|fc1|fc2)", part),
            Rule(rf"{block}/(gamma)", part, COLUMN),
        ]
        return Naming(TIMM, rules, "", rf"classifier\..*|features\.[{2 * len(self.reductions)}-9]\..*")


def _dims(width: int) -> tuple[int, ...]:
    return tuple(width * 2**stage for stage in range(4))


# Liu et al. 2022, section 3: blocks of each stage, and channels of the first
_V1 = {
    "tiny": ((3, 3, 9, 3), 96),
    "small": ((3, 3, 27, 3), 96),
    "base": ((3, 3, 27, 3), 128),
    "large": ((3, 3, 27, 3), 192),
}
# Woo et al. 2023, appendix A.1
_V2_SMALLER = {
    "atto": ((2, 2, 6, 2), 40),
    "femto": ((2, 2, 6, 2), 48),
    "pico": ((2, 2, 6, 2), 64),
    "nano": ((2, 2, 8, 2), 80),
}
_V2 = {size: _V1[size] for size in ("tiny", "base", "large")} | _V2_SMALLER

register_encoders(
    {f"convnext_{size}": partial(ConvNeXt, depths=depths, dims=_dims(width)) for size, (depths, width) in _V1.items()}
    | {
        f"convnextv2_{size}": partial(
            ConvNeXt,
            depths=depths,
            dims=_dims(width),
            grn=True,
            layer_scale=None,
            conv_mlp=size in _V2_SMALLER,
        )
        for size, (depths, width) in _V2.items()
    }
)
