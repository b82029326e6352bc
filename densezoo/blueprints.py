"""The families of the zoo: what each is and what it is good at, and how it is put together."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn

from densezoo.decoders import FPNDecoder, SegNetDecoder, UNetDecoder
from densezoo.encoders import VGG, PlainEncoder
from densezoo.heads import SegmentationHead


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
    return encoder.reductions  # pyright: ignore[reportAttributeAccessIssue]


def _unet_fields(encoder: nn.Module) -> dict[str, Any]:
    if isinstance(encoder, PlainEncoder):
        return {"features": tuple(reversed(encoder.features[:-1]))}
    # segmentation_models_pytorch convolves twice more on top of a VGG.
    return {"center": isinstance(encoder, VGG)}


def _fpn_fields(encoder: nn.Module) -> dict[str, Any]:
    return {"levels": min(4, len(reductions(encoder)))}


def _segnet_fields(encoder: nn.Module) -> dict[str, Any]:
    if isinstance(encoder, PlainEncoder):
        return {"stage_sizes": (2,) * (len(encoder.features) - 1)}
    if isinstance(encoder, VGG):
        # The mirror image of the encoder, whose last convolution is the head.
        first, *others = encoder.stage_sizes
        return {"stage_sizes": (*reversed(others), max(1, first - 1))}
    return {}


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
    ),
)
