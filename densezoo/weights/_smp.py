"""The configurations that segmentation_models_pytorch's `save_pretrained` writes -> densezoo's models."""

import dataclasses
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn

from densezoo.blocks import SCSE, Bicubic, Bilinear, Nearest
from densezoo.weights._repository import Config
from densezoo.zoo import create_encoder, create_model


@dataclasses.dataclass(frozen=True)
class Architecture:
    """One of its classes.

    Attributes:
        name: its name in densezoo.
        fields: its options that are fields of densezoo's decoder, with their defaults.
        depth: its default for `encoder_depth`.
        stride: its default for `encoder_output_stride`, None if it has no such option.
        upsampling: its default for `upsampling`, by which it enlarges its logits; None for an option without effect.
        only: further options with a single supported value.
    """

    name: str
    fields: Mapping[str, tuple[str, Any]]
    depth: int = 5
    stride: int | None = None
    upsampling: int | None = None
    only: Mapping[str, Any] = dataclasses.field(default_factory=dict)


_CHANNELS = {"decoder_channels": ("features", (256, 128, 64, 32, 16))}
_ASPP = {
    "decoder_channels": ("features", 256),
    "decoder_atrous_rates": ("atrous_rates", (12, 24, 36)),
    "decoder_aspp_dropout": ("aspp_dropout", 0.5),
}
ARCHITECTURES = {
    "Unet": Architecture("unet", _CHANNELS),
    "UnetPlusPlus": Architecture("unetplusplus", _CHANNELS),
    "MAnet": Architecture("manet", _CHANNELS | {"decoder_pab_channels": ("attention_features", 64)}),
    "Linknet": Architecture("linknet", {}),
    "FPN": Architecture(
        "fpn",
        {
            "decoder_pyramid_channels": ("features", 256),
            "decoder_segmentation_channels": ("segmentation_features", 128),
            "decoder_dropout": ("dropout", 0.2),
        },
        upsampling=4,
        only={"decoder_merge_policy": "add", "decoder_interpolation": "nearest"},
    ),
    "PSPNet": Architecture(
        "pspnet", {"psp_out_channels": ("features", 512), "psp_dropout": ("dropout", 0.2)}, depth=3, upsampling=8
    ),
    "PAN": Architecture(
        "pan",
        {"decoder_channels": ("features", 32)},
        stride=16,
        upsampling=4,
        only={"decoder_interpolation": "bilinear"},
    ),
    "DeepLabV3": Architecture(
        "deeplabv3", _ASPP | {"decoder_aspp_separable": ("separable", False)}, stride=8, upsampling=8
    ),
    "DeepLabV3Plus": Architecture(
        "deeplabv3plus", _ASPP | {"decoder_aspp_separable": ("separable", True)}, stride=16, upsampling=4
    ),
    "UPerNet": Architecture("upernet", {"decoder_channels": ("features", 256)}, upsampling=4),
    "Segformer": Architecture("segformer", {"decoder_segmentation_channels": ("features", 256)}, upsampling=4),
    "DPT": Architecture(
        "dpt",
        {
            "decoder_readout": ("readout", "cat"),
            "decoder_intermediate_channels": ("intermediate_features", (256, 512, 1024, 1024)),
            "decoder_fusion_channels": ("features", 256),
        },
        depth=4,
        only={"dynamic_img_size": True},
    ),
}
"""segmentation_models_pytorch's classes."""

_NORMS = {"batchnorm": {}, "True": {}, "identity": {"norm": None}, "False": {"norm": None}}
_ATTENTION = {"None": {}, "scse": {"attention": SCSE}}
_INTERPOLATION = {
    "nearest": {},
    "nearest-exact": {"upsample": Nearest},
    "bilinear": {"upsample": Bilinear},
    "bicubic": {"upsample": Bicubic},
}
_FREE = ("decoder_use_norm", "decoder_attention_type", "decoder_interpolation")
_WITHOUT_EFFECT = ("encoder_weights", "in_channels", "aux_params", "activation")


def build(config: Config, architecture: Architecture) -> nn.Module:
    """The model of a configuration. It returns logits, without the configuration's `activation`.

    Raises:
        ValueError: if an option has no counterpart.
    """
    known = {"encoder_name", "encoder_depth", "classes", *_WITHOUT_EFFECT, *architecture.fields, *architecture.only}
    free = [] if "decoder_interpolation" in architecture.only else list(_FREE)
    known |= {"upsampling", "encoder_output_stride", "encoder_output_indices", *free, "decoder_use_norm"}
    for name, value in config.options.items():
        if name not in known and not name.startswith("_"):
            raise config.unsupported(name, value, f"the options {', '.join(sorted(known))}")
    config.only(**architecture.only)
    if config.options.get("activation") not in (None, "identity"):
        warnings.warn(
            f"{config.source}: densezoo's model returns logits, without activation={config.options['activation']!r}",
            stacklevel=4,
        )
    depth = config.size("encoder_depth", architecture.depth, 32)
    if architecture.upsampling is not None:
        config.only(upsampling=_upsampling(config, architecture, depth))
    if architecture.fields.get("decoder_channels") == _CHANNELS["decoder_channels"]:
        config.sizes("decoder_channels", _CHANNELS["decoder_channels"][1], depth)
    fields = {field: config.get(name, default) for name, (field, default) in architecture.fields.items()}
    if fields.get("features") == architecture.fields.get("decoder_channels", ("", None))[1]:
        fields.pop("features", None)  # the default, which follows the encoder's maps
    for name, default, choices in (
        ("decoder_use_norm", "batchnorm", _NORMS),
        ("decoder_attention_type", "None", _ATTENTION),
        ("decoder_interpolation", "nearest", _INTERPOLATION),
    ):
        if name in (*free, "decoder_use_norm"):
            value = str(config.options.get(name, default))
            if value not in choices:
                raise config.unsupported(name, value, ", ".join(choices))
            fields |= choices[value]
    return create_model(architecture.name, _encoder(config, architecture, depth), config.size("classes", 1), **fields)


def _upsampling(config: Config, architecture: Architecture, depth: int) -> int | None:
    """The `upsampling` that enlarges the logits to the image's size."""
    if architecture.name == "pspnet":
        return 2**depth
    if architecture.name == "deeplabv3":
        stride = config.size("encoder_output_stride", architecture.stride or 8, 32)
        return 2**depth if depth <= 3 else stride
    return architecture.upsampling


def _encoder(config: Config, architecture: Architecture, depth: int) -> nn.Module:
    name = re.sub(r"^tu-([^.]*).*", r"\1", config.get("encoder_name", "resnet34"))
    indices = config.options.get("encoder_output_indices")
    fields: dict[str, Any] = {}
    if architecture.name == "dpt":
        numbers = tuple(index + 1 for index in config.get("encoder_output_indices", (0,)))
        fields["levels"] = depth if indices is None else numbers
    else:
        config.only(encoder_output_indices=None)
        fields |= {} if depth == 5 else {"coarsest": 2**depth}
    if architecture.stride is not None:
        fields["output_stride"] = config.size("encoder_output_stride", architecture.stride, 32)
    else:
        config.only(encoder_output_stride=None)
    try:
        return create_encoder(name, **fields)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{config.source}: {error}") from error


BUILDERS: dict[str, Callable[[Config], nn.Module]] = {
    name: partial(build, architecture=architecture) for name, architecture in ARCHITECTURES.items()
}
"""The builders of models by segmentation_models_pytorch's class names."""
