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
from densezoo.blueprint import Blueprint, register
from densezoo.decoders.steps import from_a_quarter, from_reduction, one_scale
from densezoo.heads import SegmentationHead
from densezoo.naming import SMP, TORCHVISION, Naming, Rule
from densezoo.types import Dtype, ModuleDef, Pyramid, size_of


class DeepLabV3Decoder(nn.Module):
    """DeepLabV3: atrous spatial pyramid pooling on the encoder's last map, and a 3x3 convolution.

    The result has the size of that map, 1/8 or 1/16 of the image for an encoder with that `output_stride`. A head
    upsamples it to the image's size.

    Attributes:
        features: channels of the result.
        atrous_rates: dilation of each 3x3 convolution of the pyramid pooling. The defaults are the references' for 1/8;
          the paper halves them for 1/16.
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
        # The references use torch's default initialiser for these convolutions.
        fields = {
            "norm": self.norm,
            "act": self.act,
            "kernel_init": torch_uniform,
            "dtype": self.dtype,
            "param_dtype": self.param_dtype,
        }
        x = ASPP(self.features, self.atrous_rates, self.separable, self.aspp_dropout, name="aspp", **fields)(
            pyramid.maps[-1], train=train
        )
        x = ConvNormAct(self.features, name="conv", **fields)(x, train=train)
        return SpatialDropout(self.dropout)(x, train=train)

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch and torchvision."""

        def naming(source: str, prefix: str, aspp: str, conv: str, norm: str, ignored: str = "") -> Naming:
            rules = [*_aspp(len(self.atrous_rates), aspp), Rule("conv/conv", conv), Rule("conv/norm", norm)]
            return Naming(source, rules, prefix, ignored)

        return [
            naming(SMP, "decoder.", "aspp", "conv", "bn"),
            naming(SMP, "decoder.", "0", "1", "2"),  # up to version 0.3
            naming(TORCHVISION, "classifier.", "0", "1", "2", r"aux_classifier\..*"),
        ]


class DeepLabV3PlusDecoder(nn.Module):
    """DeepLabV3+: upsamples the result of the pyramid pooling and joins it with a fine map of the encoder.

    The result has the size of that fine map, 1/4 of the image. A head upsamples it to the image's size.

    Attributes:
        features: channels of the result.
        skip_features: channels to which the fine map is projected before the concatenation; few, so that they do not
          outweigh the others. (The number of groups of a group norm must divide both.)
        finest: selects the fine map: the encoder's finest map with at least this reduction. In a pyramid without
          `reductions`, it is the finest map.
        atrous_rates: dilation of each 3x3 convolution of the pyramid pooling.
        separable: whether these are depthwise separable; the two convolutions after it always are.
        aspp_dropout: share of the pyramid pooling's values that are dropped in training (needs a `dropout` random key).
        dropout: share of the result's channels that are dropped in training.
        upsample: factory of the upsampler; align-corners as in the reference.
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
        # The reference uses torch's default initialiser for these convolutions.
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

    def reference_names(self) -> list[Naming]:
        """Parameter names of segmentation_models_pytorch."""
        rules = [
            *_aspp(len(self.atrous_rates), "aspp.0"),
            Rule(r"aspp_conv/depthwise", "aspp.1.0"),
            Rule(r"aspp_conv/pointwise/conv", "aspp.1.1"),
            Rule(r"aspp_conv/pointwise/norm", "aspp.2"),
            Rule(r"block1/conv", "block1.0"),
            Rule(r"block1/norm", "block1.1"),
            Rule(r"block2/depthwise", "block2.0.0"),
            Rule(r"block2/pointwise/conv", "block2.0.1"),
            Rule(r"block2/pointwise/norm", "block2.1"),
        ]
        return [Naming(SMP, rules, "decoder.")]


def _aspp(rates: int, name: str) -> list[Rule]:
    """Rules of a pyramid pooling with this number of rates."""
    branch = rf"{name}.convs.\1"
    return [
        Rule(r"aspp/convs_(\d+)/conv", f"{branch}.0"),
        Rule(r"aspp/convs_(\d+)/norm", f"{branch}.1"),
        Rule(r"aspp/convs_(\d+)/depthwise", f"{branch}.0.0"),
        Rule(r"aspp/convs_(\d+)/pointwise/conv", f"{branch}.0.1"),
        Rule(r"aspp/convs_(\d+)/pointwise/norm", f"{branch}.1"),
        Rule(r"aspp/pool/conv", f"{name}.convs.{rates + 1}.1"),
        Rule(r"aspp/pool/norm", f"{name}.convs.{rates + 1}.2"),
        Rule(r"aspp/project/conv", f"{name}.project.0"),
        Rule(r"aspp/project/norm", f"{name}.project.1"),
    ]


register(
    Blueprint(
        name="deeplabv3",
        description="Parallel convolutions with several dilation rates on the map of an encoder dilated to 1/8.",
        skip_strategy="none: the encoder keeps its resolution by dilation instead of strides",
        excels_at="objects at many scales in a wide context, if slightly blurred borders are acceptable",
        paper="Chen et al. 2017, https://arxiv.org/abs/1706.05587",
        decoder=DeepLabV3Decoder,
        encoder="resnet50",
        # segmentation_models_pytorch uses torch's default initialiser for DeepLab's head.
        head=partial(SegmentationHead, kernel_size=1, kernel_init=torch_uniform),
        encoder_fields={"output_stride": 8},
        misfit=one_scale,
        reads=lambda reductions: [len(reductions) - 1],
    )
)

register(
    Blueprint(
        name="deeplabv3plus",
        description="DeepLabV3 with separable convolutions, an encoder dilated to 1/16 and one upsampling step to 1/4.",
        skip_strategy="concatenates one fine map of the encoder, projected to few channels",
        excels_at="street scenes: wide context and sharp borders",
        paper="Chen et al. 2018, https://arxiv.org/abs/1802.02611",
        decoder=DeepLabV3PlusDecoder,
        encoder="resnet50",
        head=partial(SegmentationHead, kernel_size=1, kernel_init=torch_uniform),
        encoder_fields={"output_stride": 16},
        misfit=one_scale,
        reads=lambda reductions: [from_a_quarter(reductions)[0], len(reductions) - 1],
    )
)
