"""DeepLab's decoders: atrous spatial pyramid pooling over a dilated encoder, with a skip (V3+) or without (V3)."""

from collections.abc import Callable, Sequence
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from densezoo.blocks import (
    ASPP,
    BatchNorm,
    Bilinear,
    ConcatSkip,
    ConvNormAct,
    SeparableConv,
    SpatialDropout,
    build,
    step_up,
    torch_uniform,
)
from densezoo.decoders.steps import from_reduction
from densezoo.types import Dtype, ModuleDef, Pyramid, size_of


class DeepLabV3Decoder(nn.Module):
    """DeepLabV3: atrous spatial pyramid pooling on the encoder's last map, and a 3x3 convolution.

    The result has the size of that map, 1/8 or 1/16 of the image over an encoder with that `output_stride`; a head
    brings it to the image's size.

    Args (fields):
        features: channels of the result.
        atrous_rates: dilation of each 3x3 convolution of the pyramid pooling; the defaults are those of the references
          for 1/8, and the paper halves them for 1/16.
        separable: whether these are depthwise separable.
        aspp_dropout: share of the pyramid pooling's values that are dropped in training (needs a `dropout` random key).
        dropout: share of the result's channels that are dropped in training.
        norm: factory of the normalisation, None for none.
        act: activation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> pyramid = dz.Pyramid((jnp.zeros((1, 17, 16, 64)), jnp.zeros((1, 9, 8, 128))))
        >>> jax.eval_shape(DeepLabV3Decoder().init_with_output, jax.random.key(0), pyramid)[0].shape
        (1, 9, 8, 256)

        The model whose weights torchvision's `deeplabv3_resnet50` has; its layers are dilated in another way, and its
        logits resized in another way, than those of segmentation_models_pytorch, which `create_model` follows:

        >>> model = dz.SegmentationModel(
        ...     encoder=dz.create_encoder("resnet50", output_stride=8, dilate_first=False),
        ...     decoder=DeepLabV3Decoder(),
        ...     head=dz.SegmentationHead(21, kernel_size=1, upsample=dz.Bilinear),
        ... )

    References:
        Chen et al., Rethinking atrous convolution, 2017. https://arxiv.org/abs/1706.05587 (figure 5), with the details
        of segmentation_models_pytorch and torchvision.
    """

    features: int = 256
    atrous_rates: Sequence[int] = (12, 24, 36)
    separable: bool = False
    aspp_dropout: float = 0.5
    dropout: float = 0.0
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, *, train: bool = False) -> Float[Array, "b h w c"]:
        # The references leave these convolutions to torch's own initialiser.
        fields = {
            "norm": self.norm,
            "act": self.act,
            "kernel_init": torch_uniform,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        x = ASPP(self.features, self.atrous_rates, self.separable, self.aspp_dropout, name="aspp", **fields)(
            pyramid.features[-1], train=train
        )
        x = ConvNormAct(self.features, name="conv", **fields)(x, train=train)
        return SpatialDropout(self.dropout)(x, train=train)


class DeepLabV3PlusDecoder(nn.Module):
    """DeepLabV3+: the pyramid pooling's result is upsampled and joined with a fine map of the encoder.

    The result has the size of that fine map, 1/4 of the image; a head brings it to the image's size.

    Args (fields):
        features: channels of the result.
        skip_features: channels to which the fine map is brought before it joins; few, so that they do not outweigh the
          others. (A group norm must divide both numbers.)
        finest: image size over feature size of the map that joins: the first of the encoder's at this or coarser. In a
          pyramid that does not tell its `reductions` it is the first of all.
        atrous_rates: dilation of each 3x3 convolution of the pyramid pooling.
        separable: whether these are depthwise separable; the two convolutions after it always are.
        aspp_dropout: share of the pyramid pooling's values that are dropped in training (needs a `dropout` random key).
        dropout: share of the result's channels that are dropped in training.
        upsample: factory of the upsampler; align-corners as the reference has it.
        norm: factory of the normalisation, None for none.
        act: activation.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> pyramid = dz.Pyramid((jnp.zeros((1, 17, 16, 64)), jnp.zeros((1, 5, 4, 128))), reductions=(4, 16))
        >>> jax.eval_shape(DeepLabV3PlusDecoder().init_with_output, jax.random.key(0), pyramid)[0].shape
        (1, 17, 16, 256)

    References:
        Chen et al., Encoder-decoder with atrous separable convolution, 2018. https://arxiv.org/abs/1802.02611
        (figure 2), with the details of segmentation_models_pytorch.
    """

    features: int = 256
    skip_features: int = 48
    finest: int = 4
    atrous_rates: Sequence[int] = (12, 24, 36)
    separable: bool = True
    aspp_dropout: float = 0.5
    dropout: float = 0.0
    upsample: ModuleDef = partial(Bilinear, align_corners=True)
    norm: ModuleDef | None = BatchNorm
    act: Callable[[jax.Array], jax.Array] = nn.relu
    dtype: Dtype | None = None
    param_dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pyramid: Pyramid, *, train: bool = False) -> Float[Array, "b h w c"]:
        dtypes = {"dtype": self.dtype, "param_dtype": self.param_dtype}
        # The reference leaves these convolutions to torch's own initialiser.
        fields = {"norm": self.norm, "act": self.act, "kernel_init": torch_uniform, **dtypes}
        (fine, reduction), *_ = features = from_reduction(pyramid, self.finest)
        coarse, coarsest = features[-1]
        x = ASPP(self.features, self.atrous_rates, self.separable, self.aspp_dropout, name="aspp", **fields)(
            coarse, train=train
        )
        x = SeparableConv(self.features, name="aspp_conv", **fields)(x, train=train)
        fine = ConvNormAct(self.skip_features, 1, name="block1", **fields)(fine, train=train)
        skip = ConcatSkip(name="skip", **dtypes)
        if reduction == coarsest:
            x = skip(x, fine)
        else:
            x = step_up(build(self.upsample, name="upsample", **dtypes), skip, x, fine, size_of(fine))
        x = SeparableConv(self.features, name="block2", **fields)(x, train=train)
        return SpatialDropout(self.dropout)(x, train=train)
