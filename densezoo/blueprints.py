"""The families of the zoo: what each is and what it is good at, and how it is put together."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn

from densezoo.blocks import torch_uniform
from densezoo.decoders import (
    DeepLabV3Decoder,
    DeepLabV3PlusDecoder,
    DPTDecoder,
    FPNDecoder,
    HRNetDecoder,
    LinknetDecoder,
    MAnetDecoder,
    PANDecoder,
    PSPNetDecoder,
    SegFormerDecoder,
    SegNetDecoder,
    UNetDecoder,
    UNetPlusPlusDecoder,
    UPerNetDecoder,
)
from densezoo.decoders.hrnet import hrnet_normal
from densezoo.encoders import ENCODERS, VGG, PlainEncoder
from densezoo.heads import DPTHead, SegmentationHead


@dataclasses.dataclass(frozen=True)
class Blueprint:
    """A family of the zoo: its summary, and how `create_model` builds it.

    Attributes:
        name: as `create_model` takes it.
        description: what it is, in a sentence.
        skip_strategy: how the encoder's detail reaches the output.
        excels_at: what to use it for.
        paper: authors, year, address.
        decoder: its class; its fields are `create_model`'s further arguments.
        encoder: name of the default encoder.
        head: its class or a partial of it.
        decoder_fields: fields of the decoder that follow from the encoder.
        encoder_fields: fields of an encoder that is given by name, such as a dilated one's `output_stride`.
        misfit: why an encoder does not go with this decoder, "" if it does.
    """

    name: str
    description: str
    skip_strategy: str
    excels_at: str
    paper: str
    decoder: Callable[..., nn.Module]
    encoder: str
    head: Callable[..., nn.Module] = SegmentationHead
    decoder_fields: Callable[[nn.Module], dict[str, Any]] = lambda encoder: {}
    encoder_fields: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    misfit: Callable[[nn.Module], str] = lambda encoder: ""


def reductions(encoder: nn.Module) -> tuple[int, ...]:
    """Image size over feature size for each feature of an encoder, fine to coarse."""
    if not hasattr(encoder, "reductions"):
        raise ValueError(
            f"{type(encoder).__name__} does not publish its reductions, the image's size over that of each feature, by"
            " which this decoder is made: give the class an attribute or property such as reductions = (2, 4, 8)"
        )
    return encoder.reductions  # pyright: ignore[reportAttributeAccessIssue]


def _unet_fields(encoder: nn.Module) -> dict[str, Any]:
    if isinstance(encoder, PlainEncoder):
        return {"features": tuple(reversed(encoder.features[:-1]))}
    # segmentation_models_pytorch convolves twice more on top of a VGG.
    return {"center": isinstance(encoder, VGG)}


def _nested_fields(encoder: nn.Module) -> dict[str, Any]:
    # Without the U-Net's center.
    return {"features": tuple(reversed(encoder.features[:-1]))} if isinstance(encoder, PlainEncoder) else {}


def _fpn_fields(encoder: nn.Module) -> dict[str, Any]:
    return {"levels": min(4, len(reductions(encoder)))}


def _segnet_fields(encoder: nn.Module) -> dict[str, Any]:
    if isinstance(encoder, PlainEncoder):
        return {"stage_sizes": (2,) * (len(encoder.features) - 1)}
    if isinstance(encoder, VGG):
        # The mirror image of the encoder, whose last convolution is the head.
        first, *others = encoder.stage_sizes[: encoder.reductions[-1].bit_length() - 1]
        return {"stage_sizes": (*reversed(others), max(1, first - 1))}
    return {}


def _segnet_misfit(encoder: nn.Module) -> str:
    others = {maker.func if isinstance(maker, partial) else maker for maker in ENCODERS.values()} - {VGG, PlainEncoder}
    if type(encoder) not in others:
        return ""
    return (
        "SegNet unpools what 2x2 max-pooling has pooled, and this encoder does none: take plain, or vgg11 to vgg19_bn"
    )


def _scales(encoder: nn.Module) -> str:
    scales = getattr(encoder, "reductions", ())
    if len(scales) < 2 or len(set(scales)) > 1:
        return ""
    return f"all of its features are at 1/{scales[0]} of the image, and this decoder needs several scales: take dpt"


def _dpt_misfit(encoder: nn.Module) -> str:
    if len(set(reductions(encoder))) == 1:
        return ""
    return "DPT makes its pyramid from a plain transformer's maps, all of one scale, such as vit_base_patch16_224's"


BLUEPRINTS = (
    Blueprint(
        name="unet",
        description="A symmetric decoder that climbs back scale by scale, two convolutions at each.",
        skip_strategy="concatenates the encoder's map at every scale",
        excels_at="pixel-precise segmentation, little data, diffusion backbones",
        paper="Ronneberger et al. 2015, https://arxiv.org/abs/1505.04597",
        decoder=UNetDecoder,
        encoder="resnet34",
        decoder_fields=_unet_fields,
        misfit=_scales,
    ),
    Blueprint(
        name="unetplusplus",
        description="A U-Net with blocks on the skips too, each fed by all maps before it and by the scale below.",
        skip_strategy="nested and dense: concatenates the encoder's map and every block's on the way across",
        excels_at="objects of many sizes, medical images, deep supervision",
        paper="Zhou et al. 2018, https://arxiv.org/abs/1807.10165",
        decoder=UNetPlusPlusDecoder,
        encoder="resnet34",
        decoder_fields=_nested_fields,
        misfit=_scales,
    ),
    Blueprint(
        name="manet",
        description="A U-Net with attention between all pixels at the bottom and gates on the channels of every scale.",
        skip_strategy="concatenates the encoder's map, whose channels help to gate what comes from below",
        excels_at="lesions and organs: context from the whole image, channels weighed by content",
        paper="Fan et al. 2020, https://ieeexplore.ieee.org/document/9201310; gates: Hu et al. 2017,"
        " https://arxiv.org/abs/1709.01507",
        decoder=MAnetDecoder,
        encoder="resnet34",
        decoder_fields=_nested_fields,
        misfit=_scales,
    ),
    Blueprint(
        name="linknet",
        description="A light decoder, as wide as the encoder: 1x1 convolutions with a transposed one between them.",
        skip_strategy="adds the encoder's map as it is",
        excels_at="fast segmentation with few parameters",
        paper="Chaurasia and Culurciello 2017, https://arxiv.org/abs/1707.03718",
        decoder=LinknetDecoder,
        encoder="resnet34",
        head=partial(SegmentationHead, kernel_size=1),
        misfit=_scales,
    ),
    Blueprint(
        name="fpn",
        description="A light top-down pyramid with equal channels at every scale, summed up at 1/4 of the image.",
        skip_strategy="adds 1x1 lateral convolutions of the encoder's maps",
        excels_at="multi-scale objects, detection and panoptic segmentation on the same features",
        paper="Lin et al. 2016, https://arxiv.org/abs/1612.03144; Kirillov et al. 2019, https://arxiv.org/abs/1901.02446",
        decoder=FPNDecoder,
        encoder="resnet34",
        head=partial(SegmentationHead, kernel_size=1),
        decoder_fields=_fpn_fields,
        misfit=_scales,
    ),
    Blueprint(
        name="segnet",
        description="A mirror image of a VGG that puts every value back to where its maximum was pooled from.",
        skip_strategy="unpools with the saved max-pooling indices",
        excels_at="segmentation when memory is limited: indices instead of maps are kept",
        paper="Badrinarayanan et al. 2015, https://arxiv.org/abs/1511.00561",
        decoder=SegNetDecoder,
        encoder="vgg16_bn",
        decoder_fields=_segnet_fields,
        misfit=_segnet_misfit,
    ),
    Blueprint(
        name="segformer",
        description="Every scale through one linear layer, resized to 1/4 of the image and fused by one convolution.",
        skip_strategy="concatenates all of the encoder's maps at once, at 1/4 of the image",
        excels_at="transformer encoders, which look everywhere by themselves: few parameters, fast",
        paper="Xie et al. 2021, https://arxiv.org/abs/2105.15203",
        decoder=SegFormerDecoder,
        encoder="mit_b0",
        head=partial(SegmentationHead, kernel_size=1),
        misfit=_scales,
    ),
    Blueprint(
        name="dpt",
        description="A plain transformer's maps, made a pyramid again and fused from coarse to fine.",
        skip_strategy="adds maps of evenly spaced blocks, each resized by learned convolutions",
        excels_at="depth and segmentation from large pretrained Vision Transformers",
        paper="Ranftl et al. 2021, https://arxiv.org/abs/2103.13413",
        decoder=DPTDecoder,
        encoder="vit_base_patch16_224",
        head=DPTHead,
        misfit=_dpt_misfit,
    ),
    Blueprint(
        name="deeplabv3",
        description="Convolutions dilated at several rates, side by side on the map of an encoder dilated to 1/8.",
        skip_strategy="none: the encoder keeps its resolution by dilation in place of strides",
        excels_at="objects at many scales in a wide context, where borders may be a little soft",
        paper="Chen et al. 2017, https://arxiv.org/abs/1706.05587",
        decoder=DeepLabV3Decoder,
        encoder="resnet50",
        # segmentation_models_pytorch leaves DeepLab's head to torch's own initialiser.
        head=partial(SegmentationHead, kernel_size=1, kernel_init=torch_uniform),
        encoder_fields={"output_stride": 8},
        misfit=_scales,
    ),
    Blueprint(
        name="deeplabv3plus",
        description="DeepLabV3 with separable convolutions over an encoder dilated to 1/16, and one step up to 1/4.",
        skip_strategy="concatenates one fine map of the encoder, brought to few channels",
        excels_at="street scenes: wide context and sharp borders",
        paper="Chen et al. 2018, https://arxiv.org/abs/1802.02611",
        decoder=DeepLabV3PlusDecoder,
        encoder="resnet50",
        head=partial(SegmentationHead, kernel_size=1, kernel_init=torch_uniform),
        encoder_fields={"output_stride": 16},
        misfit=_scales,
    ),
    Blueprint(
        name="pan",
        description="Attention over a pyramid of the coarsest map, then light steps up that the coarse map steers.",
        skip_strategy="adds convolved maps of the encoder, their channels weighed by the coarser map",
        excels_at="segmentation with context at little cost",
        paper="Li et al. 2018, https://arxiv.org/abs/1805.10180",
        decoder=PANDecoder,
        encoder="resnet34",
        encoder_fields={"output_stride": 16},
        misfit=_scales,
    ),
    Blueprint(
        name="pspnet",
        description="Means over grids of 1, 2, 3 and 6 bins beside the map of an encoder that stops at 1/8.",
        skip_strategy="none: the coarsest map alone, which is still fine",
        excels_at="scenes, where the whole image says what a part of it is",
        paper="Zhao et al. 2016, https://arxiv.org/abs/1612.01105",
        decoder=PSPNetDecoder,
        encoder="resnet34",
        encoder_fields={"coarsest": 8},
        misfit=_scales,
    ),
    Blueprint(
        name="upernet",
        description="PSPNet's pooling on the coarsest map, an FPN from there on, and all maps fused at 1/4.",
        skip_strategy="adds 1x1 lateral convolutions of the encoder's maps, and concatenates the results of all scales",
        excels_at="accuracy with any encoder, above all transformers and ConvNeXt",
        paper="Xiao et al. 2018, https://arxiv.org/abs/1807.10221",
        decoder=UPerNetDecoder,
        encoder="resnet34",
        head=partial(SegmentationHead, kernel_size=1),
        misfit=_scales,
    ),
    Blueprint(
        name="hrnet",
        description="All scales of an encoder that keeps them side by side, mixed by a 1x1 convolution.",
        skip_strategy="concatenates all maps at the finest one's size; the scales have met within the encoder",
        excels_at="fine detail and position: poses, faces, thin structures",
        paper="Wang et al. 2019, https://arxiv.org/abs/1908.07919",
        decoder=HRNetDecoder,
        encoder="hrnet_w18",
        head=partial(SegmentationHead, kernel_size=1, kernel_init=hrnet_normal),
        encoder_fields={"incre": False},
        misfit=_scales,
    ),
)
