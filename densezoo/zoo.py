"""The zoo's registry: names -> constructors, and for each family what it is and what it is good at."""

import dataclasses
import difflib
import fnmatch
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, TypeVar

import flax.linen as nn
import jax.numpy as jnp

from densezoo import ops
from densezoo.blocks import (
    CARAFE,
    Bicubic,
    Bilinear,
    ConcatSkip,
    DySample,
    LateralAdd,
    Nearest,
    PixelShuffle,
    ResizeConv,
    TransposedConv,
)
from densezoo.decoders import FPNDecoder, SegNetDecoder, UNetDecoder
from densezoo.encoders import ENCODERS, VGG, PlainEncoder
from densezoo.heads import SegmentationHead
from densezoo.models import SegmentationModel
from densezoo.types import Dtype, ModuleDef

T = TypeVar("T")

UPSAMPLERS: dict[str, ModuleDef] = {
    "nearest": Nearest,
    "bilinear": Bilinear,
    "bilinear_align_corners": partial(Bilinear, align_corners=True),
    "bicubic": Bicubic,
    "transposed_conv": TransposedConv,
    "transposed_conv_4x4": partial(TransposedConv, kernel_size=4),
    "resize_conv": ResizeConv,
    "pixel_shuffle": PixelShuffle,
    "carafe": CARAFE,
    "dysample": DySample,
}
"""Names of upsamplers, for command lines; the `upsample` field of a decoder takes the factory itself."""

SKIPS: dict[str, ModuleDef] = {"concat": ConcatSkip, "add": LateralAdd}
"""Names of skips, for command lines; the `skip` field of a U-Net takes the factory itself."""


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


_MODELS = (
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
MODELS = {blueprint.name: blueprint for blueprint in _MODELS}


def blueprints() -> tuple[Blueprint, ...]:
    """The families of the zoo with their summaries, from the registry that builds the models.

    Example:
        >>> [b.skip_strategy for b in blueprints() if b.name == "segnet"]
        ['unpools with the saved max-pooling indices']
    """
    return _MODELS


def list_models(pattern: str = "*") -> list[str]:
    """Names that `create_model` takes, those that match a shell pattern.

    Example:
        >>> list_models("*net")
        ['segnet', 'unet']
    """
    return sorted(fnmatch.filter(MODELS, pattern))


def list_encoders(pattern: str = "*") -> list[str]:
    """Names that `create_encoder` takes, those that match a shell pattern.

    Example:
        >>> list_encoders("resnet1*")
        ['resnet101', 'resnet152', 'resnet18']
    """
    return sorted(fnmatch.filter(ENCODERS, pattern))


def create_encoder(name: str, **fields: Any) -> nn.Module:
    """An encoder by its name, with any of its fields changed.

    Args:
        name: one of `list_encoders()`.
        **fields: fields of the encoder's class, such as `norm`, `act`, `dtype`.

    Raises:
        ValueError: an unknown name.
        TypeError: an unknown field.

    Example:
        >>> create_encoder("resnet34").reductions
        (2, 4, 8, 16, 32)
    """
    constructor = look_up(name, ENCODERS, "encoder")
    _check_fields(constructor, fields, f"encoder {name!r}")
    return constructor(**fields)


def create_model(
    name: str,
    encoder: str | nn.Module | None = None,
    num_classes: int = 1,
    *,
    frozen: tuple[str, ...] = (),
    impl: str = "auto",
    dtype: Dtype | None = None,
    param_dtype: Dtype = jnp.float32,
    **fields: Any,
) -> SegmentationModel:
    """A model of the zoo by its name: encoder, decoder and head, put together.

    The number of input channels is that of the first images it sees.

    Args:
        name: one of `list_models()`.
        encoder: one of `list_encoders()`, or an encoder; None takes the family's usual one.
        num_classes: channels of the logits; 1 for a binary mask.
        frozen: parts that do not train, such as `("encoder",)`.
        impl: which implementation of the operations computes, one of `densezoo.ops.IMPLEMENTATIONS`.
        dtype: of the computation, such as `jnp.bfloat16`; None computes in the type of images and parameters.
        param_dtype: of the parameters. Both are passed to the encoder too, if it is given by name.
        **fields: fields of the decoder's class, such as `upsample`, `skip`, `norm`, `features`. They do not reach the
            encoder: for another norm there too, pass `encoder=create_encoder(name, norm=...)`.

    Raises:
        ValueError: an unknown name or `impl`, or a `dtype` that an encoder given as a module does not have.
        TypeError: an unknown field.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> model = create_model("unet", encoder="resnet34", num_classes=3, upsample=Bilinear)
        >>> images = jnp.zeros((1, 50, 50, 3))
        >>> variables = jax.eval_shape(model.init, jax.random.key(0), images)
        >>> jax.eval_shape(model.apply, variables, images).shape
        (1, 50, 50, 3)
    """
    blueprint = look_up(name, MODELS, "model")
    look_up(impl, ops.IMPLEMENTATIONS, "impl")
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ValueError(f"num_classes is a whole number of at least 1 (1 for a binary mask), got {num_classes!r}")
    _check_fields(blueprint.decoder, fields, f"model {name!r}")
    if isinstance(frozen, str) or not set(frozen) <= {"encoder", "decoder", "head"}:
        raise ValueError(f"frozen is a tuple of names among encoder, decoder and head; got {frozen!r}")
    dtypes = {"dtype": dtype, "param_dtype": param_dtype}
    if encoder is None or isinstance(encoder, str):
        encoder = create_encoder(encoder or blueprint.encoder, **dtypes)
    if not isinstance(encoder, nn.Module):
        raise TypeError(f"encoder is a name or an encoder, such as dz.PlainEncoder(); got {encoder!r}")
    if dtype is not None and getattr(encoder, "dtype", dtype) != dtype:
        raise ValueError(
            f"the encoder given computes in dtype={getattr(encoder, 'dtype', None)}: make it with {dtype=}"
        )
    return SegmentationModel(
        encoder=encoder,
        decoder=blueprint.decoder(**(blueprint.decoder_fields(encoder) | fields), **dtypes),
        head=blueprint.head(num_classes, **dtypes),
        frozen=tuple(frozen),
        impl=impl,
    )


def reductions(encoder: nn.Module) -> tuple[int, ...]:
    """Image size over feature size for each feature of an encoder, fine to coarse."""
    return encoder.reductions  # pyright: ignore[reportAttributeAccessIssue]


def look_up(name: str, table: dict[str, T], kind: str) -> T:
    """The entry of a registry, or an error that names the nearest choices."""
    if name not in table:
        raise ValueError(f"unknown {kind} {name!r}; {_nearest(name, table)}")
    return table[name]


def _check_fields(constructor: Callable[..., Any], fields: dict[str, Any], what: str) -> None:
    cls = constructor.func if isinstance(constructor, partial) else constructor
    known = [field.name for field in dataclasses.fields(cls) if field.init and field.name not in ("parent", "name")]  # pyright: ignore[reportArgumentType]
    for field in fields:
        if field not in known:
            raise TypeError(f"{what} has no argument {field!r}; {_nearest(field, known)}")


def _nearest(name: object, choices: Iterable[str]) -> str:
    choices = sorted(choices)
    near = difflib.get_close_matches(str(name), choices, n=5, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"there are: {', '.join(choices)}"
