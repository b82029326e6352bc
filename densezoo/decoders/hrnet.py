"""HRNet's segmentation head: all maps at the size of the finest, concatenated and mixed by a 1x1 convolution."""

from collections.abc import Callable
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float

from densezoo.blocks import BatchNorm, Bilinear, ConvNormAct, SpatialDropout, build, upsampled
from densezoo.blueprint import Blueprint, register
from densezoo.decoders.steps import one_scale
from densezoo.heads import SegmentationHead
from densezoo.naming import HRNET, Naming, Rule
from densezoo.types import Dtype, Initializer, ModuleDef, Pyramid, size_of

hrnet_normal: Initializer = nn.initializers.normal(0.001)
"""The authors' initialiser of every convolution of their segmentation models."""


class HRNetDecoder(nn.Module):
    """HRNetV2's head: upsamples every map to the finest one's size and concatenates them, then a 1x1 convolution.

    This is enough, because the encoder has already mixed the scales. It was designed for `HRNet(incre=False)`.

    Attributes:
        features: channels of the result; None means the sum of the maps' channels, as in the paper.
        dropout: share of channels dropped from the result in training (needs a `dropout` random key).
        upsample: factory of the upsampler; align-corners as in the authors' code since the version for PyTorch 1.1
          (`MODEL.ALIGN_CORNERS`). Their first version, of 2019, uses half-pixel centres: `Bilinear`.
        norm: factory of the normalisation, None for none.
        act: activation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> pyramid = dz.Pyramid((jnp.zeros((1, 17, 16, 18)), jnp.zeros((1, 9, 8, 36))))
        >>> jax.eval_shape(HRNetDecoder().init_with_output, jax.random.key(0), pyramid)[0].shape
        (1, 17, 16, 54)

    References:
        Wang et al., Deep high-resolution representation learning for visual recognition, 2019.
        https://arxiv.org/abs/1908.07919 (figure 4b)
    """

    features: int | None = None
    dropout: float = 0.0
    upsample: ModuleDef = partial(Bilinear, align_corners=True)
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, *, train: bool = False) -> Float[Array, "b h w c"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        finest, *coarser = pyramid.maps
        maps = [finest]
        for level, x in enumerate(coarser, start=1):
            maps.append(upsampled(build(self.upsample, name=f"upsample{level}", **dtypes), x, size_of(finest)))
        x = jnp.concatenate(promote_dtype(*maps, dtype=self.dtype), axis=-1)
        x = ConvNormAct(
            self.features or x.shape[-1],
            1,
            use_bias=True,
            norm=self.norm,
            act=self.act,
            kernel_init=hrnet_normal,
            name="conv",
            **dtypes,
        )(x, train=train)
        return SpatialDropout(self.dropout)(x, train=train)

    def reference_names(self) -> list[Naming]:
        """Parameter names of HRNet's authors."""
        return [Naming(HRNET, [Rule("conv/conv", "last_layer.0"), Rule("conv/norm", "last_layer.1")])]


register(
    Blueprint(
        name="hrnet",
        description="All maps of an encoder with parallel scales, mixed by a 1x1 convolution.",
        skip_strategy="concatenates all maps at the finest one's size; the encoder has already mixed the scales",
        excels_at="fine detail and position: poses, faces, thin structures",
        paper="Wang et al. 2019, https://arxiv.org/abs/1908.07919",
        decoder=HRNetDecoder,
        encoder="hrnet_w18",
        head=partial(SegmentationHead, kernel_size=1, kernel_init=hrnet_normal),
        encoder_fields={"incre": False},
        misfit=one_scale,
    )
)
