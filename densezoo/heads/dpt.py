"""The heads of DPT: for segmentation, and for depth."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo import ops
from densezoo.blocks import Bilinear, Conv, build, torch_bias, torch_uniform, upsampled
from densezoo.heads.segmentation import SegmentationHead
from densezoo.naming import SMP, TRANSFORMERS, Naming, Rule
from densezoo.types import Dtype, ModuleDef, Size, size_of


class DPTHead(SegmentationHead):
    """A 1x1 convolution to one channel per class, and an upsampler to the image's size.

    The convolution, batch norm and dropout before it belong to the head in the references. Here they are the end of
    `DPTDecoder`, because they depend on the training mode.

    Attributes:
        double: whether logits are first enlarged to twice their size with aligned corners, as in transformers. Another
          resize, by `upsample`, follows if the sides of the image are not those of whole patches.
    """

    kernel_size: int = 1
    double: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b _ _ k"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        x = Conv(self.num_classes, self.kernel_size, kernel_init=self.kernel_init, name="conv", **dtypes)(x)
        if self.double:
            x = ops.resize_bilinear(x, (2 * x.shape[1], 2 * x.shape[2]), align_corners=True)
        return x if size_of(x) == size else upsampled(build(self.upsample, name="upsample", **dtypes), x, size)

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch and transformers."""
        rules = [Rule("conv", "head.head.4")]
        differs = "" if self.double else "its head doubles the logits first: DPTHead(double=True, upsample=dz.Bilinear)"
        return [
            Naming(SMP, [Rule("conv", "segmentation_head.head.4")]),
            Naming(TRANSFORMERS, rules, differs=differs),
        ]


class DPTDepthHead(nn.Module):
    """Three convolutions, with a resize after the first, to one value per pixel: the head of DPT and Depth Anything.

    The values of published models are inverse depths up to a scale and a shift (large is near), or depths in metres;
    `max_depth` is for the latter.

    Attributes:
        hidden: channels before the last convolution.
        projection: channels of another convolution before the first; None for none.
        patch_size: maps are resized to the largest multiple of this side within the image. If the image is larger, the
          result is resized to it by bicubic interpolation.
        double: whether maps are enlarged to twice their size instead, as in DPT.
        act: activation of the result, such as `nn.relu` or `nn.sigmoid`; None for none.
        max_depth: factor of the result.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> x = jnp.zeros((1, 40, 40, 16))
        >>> DPTDepthHead(patch_size=14).init_with_output(jax.random.key(0), x, (70, 75))[0].shape
        (1, 70, 75, 1)

    References:
        Ranftl et al., Vision transformers for dense prediction, 2021. https://arxiv.org/abs/2103.13413
        Yang et al., Depth Anything V2, 2024. https://arxiv.org/abs/2406.09414
    """

    hidden: int = 32
    projection: int | None = None
    patch_size: int = 1
    double: bool = False
    upsample: ModuleDef = partial(Bilinear, align_corners=True)
    act: Callable[[jax.Array], jax.Array] | None = nn.relu
    max_depth: float = 1.0
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"], size: Size) -> Float[Array, "b _ _ 1"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}

        def conv(x: jax.Array, features: int, kernel_size: int, name: str) -> jax.Array:
            bias = torch_bias(kernel_size**2 * x.shape[-1])
            return Conv(features, kernel_size, kernel_init=torch_uniform, bias_init=bias, name=name, **dtypes)(x)

        if self.projection is not None:
            x = nn.relu(conv(x, self.projection, 3, "projection"))
        x = conv(x, max(1, x.shape[-1] // 2), 3, "conv1")
        if self.double:
            whole = 2 * x.shape[1], 2 * x.shape[2]
        else:
            whole = size[0] // self.patch_size * self.patch_size, size[1] // self.patch_size * self.patch_size
        x = upsampled(build(self.upsample, name="upsample", **dtypes), x, whole)
        x = conv(nn.relu(conv(x, self.hidden, 3, "conv2")), 1, 1, "conv3")
        x = x if self.act is None else self.act(x)
        x = x if self.max_depth == 1 else self.max_depth * x
        return x if whole == size else ops.resize_bicubic(x, size)

    def reference_names(self) -> list[Naming]:
        """Parameter names of transformers' DPT, if `double`, and Depth Anything."""
        anything = [Rule(r"conv(\d)", r"conv\1")]
        rules = [Rule(r"conv(\d)", lambda match: f"head.{2 * int(match[1]) - 2}"), Rule("projection", "projection")]
        return [Naming(TRANSFORMERS, rules if self.double else anything, "head.")]
