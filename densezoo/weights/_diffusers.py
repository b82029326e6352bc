"""Models from the configurations of diffusers."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax

from densezoo.blocks import (
    FIR,
    AveragePool,
    Fourier,
    GroupNorm,
    LearnedTimes,
    Nearest,
    ResidualBlock,
    SelfAttention,
    Sinusoidal,
    StridedConv,
)
from densezoo.models import DiffusionUNet, DownLevel, MiddleLevel, UpLevel
from densezoo.types import ModuleDef

CLASS = "UNet2DModel"

WEIGHTS = tuple(
    f"diffusion_pytorch_model.{end}" for end in ("safetensors", "safetensors.index.json", "bin", "bin.index.json")
)
"""The files of the weights, in order of preference."""

# The defaults of diffusers, which a configuration may leave out.
_DEFAULTS: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "center_input_sample": False,
    "time_embedding_type": "positional",
    "time_embedding_dim": None,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
    "mid_block_type": "UNetMidBlock2D",
    "up_block_types": ("AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (224, 448, 672, 896),
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "downsample_padding": 1,
    "downsample_type": "conv",
    "upsample_type": "conv",
    "dropout": 0.0,
    "act_fn": "silu",
    "attention_head_dim": 8,
    "norm_num_groups": 32,
    "attn_norm_num_groups": None,
    "norm_eps": 1e-5,
    "resnet_time_scale_shift": "default",
    "add_attention": True,
    "class_embed_type": None,
    "num_class_embeds": None,
    "num_train_timesteps": None,
}
_UNUSED = ("sample_size",)
_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}
_CONDITIONING = {"default": "shift", "scale_shift": "scale_shift"}
_LABELS = {None: "table", "timestep": "time", "identity": "vector"}
_RESAMPLING = {"conv": False, "resnet": True}


def unet_of_config(config: Mapping[str, Any]) -> DiffusionUNet:
    """Creates the model that a configuration of diffusers' `UNet2DModel` describes.

    Raises:
        ValueError: if it names something unknown. The message lists the alternatives.
    """
    given = {name: value for name, value in config.items() if not name.startswith("_") and name not in _UNUSED}
    if unknown := [name for name, value in given.items() if name not in _DEFAULTS and value is not None]:
        raise ValueError(f"the configuration of a {CLASS} has unknown entries, which may change its results: {unknown}")
    config = _DEFAULTS | given
    features = tuple(config["block_out_channels"])
    types = {way: tuple(config[f"{way}_block_types"]) for way in ("down", "up")}
    if not len(features) == len(types["down"]) == len(types["up"]):
        raise ValueError(f"block_out_channels, down_block_types and up_block_types differ in length: {features}, {types}")
    levels = _Levels(config)
    if config["mid_block_type"] not in ("UNetMidBlock2D", None):
        raise ValueError(f"unknown mid_block_type {config['mid_block_type']!r}; expected 'UNetMidBlock2D' or None")
    classes = config["num_class_embeds"]
    return DiffusionUNet(
        features=features,
        down=tuple(_choice(name.removeprefix("UNetRes"), levels.down(), "down_block_type") for name in types["down"]),
        middle=None if config["mid_block_type"] is None else levels.middle(features[-1]),
        up=tuple(_choice(name.removeprefix("UNetRes"), levels.up(), "up_block_type") for name in types["up"]),
        layers=config["layers_per_block"],
        out_channels=config["out_channels"],
        num_classes=classes if config["class_embed_type"] is None else None,
        null_label=False,
        labels_as=_choice(config["class_embed_type"], _LABELS, "class_embed_type"),
        time=_time(config),
        condition_features=config["time_embedding_dim"],
        norm=levels.norm or levels.quarter,
        centre=config["center_input_sample"],
        divide_by_time=config["time_embedding_type"] == "fourier",
    )


class _Levels:
    """The factories of levels for the names of blocks in a configuration."""

    def __init__(self, config: Mapping[str, Any]):
        self.config = config
        epsilon, groups = config["norm_eps"], config["norm_num_groups"]
        self.norm: ModuleDef | None = None if groups is None else partial(GroupNorm, num_groups=groups, epsilon=epsilon)
        self.quarter = partial(GroupNorm, group_size=4, epsilon=epsilon)
        self.of_32 = partial(GroupNorm, num_groups=32, epsilon=epsilon)
        self.block = partial(
            ResidualBlock,
            conditioning=_choice(config["resnet_time_scale_shift"], _CONDITIONING, "resnet_time_scale_shift"),
            norm=self.norm,
            act=_choice(config["act_fn"], _ACTIVATIONS, "act_fn"),
            dropout=config["dropout"],
        )
        self.attention = partial(SelfAttention, head_features=config["attention_head_dim"], norm=self.norm)

    def down(self) -> dict[str, ModuleDef]:
        padding = _choice(self.config["downsample_padding"], {0: "SAME", 1: 1}, "downsample_padding")
        strided = partial(StridedConv, padding=padding)
        residual = _choice(self.config["downsample_type"], _RESAMPLING, "downsample_type")
        plain = partial(DownLevel, block=self.block, downsample=strided)
        within = partial(DownLevel, block=self.block, downsample=AveragePool, residual=True)
        image = partial(DownLevel, block=self._of_image(), downsample=FIR, residual=True, image=True)
        return {
            "DownBlock2D": plain,
            "AttnDownBlock2D": partial(within if residual else plain, attention=self.attention),
            "ResnetDownsampleBlock2D": within,
            "SkipDownBlock2D": image,
            "AttnSkipDownBlock2D": partial(image, attention=self._attention_of_image()),
        }

    def up(self) -> dict[str, ModuleDef]:
        residual = _choice(self.config["upsample_type"], _RESAMPLING, "upsample_type")
        plain = partial(UpLevel, block=self.block)
        within = partial(UpLevel, block=self.block, upsample=Nearest, residual=True)
        image = partial(UpLevel, upsample=FIR, residual=True, image=True, image_norm=self.quarter)
        return {
            "UpBlock2D": plain,
            "AttnUpBlock2D": partial(within if residual else plain, attention=self.attention),
            "ResnetUpsampleBlock2D": within,
            "SkipUpBlock2D": partial(image, block=self._of_image()),
            "AttnSkipUpBlock2D": partial(
                image,
                block=self._of_image(first_norm=self.of_32),  # of a quarter of the skip's channels, but all of the map's
                attention=self._attention_of_image(),
                attend_once=True,
            ),
        }

    def middle(self, features: int) -> ModuleDef:
        rescale = 1 / self.config["mid_block_scale_factor"]
        norm = self.norm or self.quarter
        block = partial(self.block, norm=norm, rescale=rescale)
        groups = self.config["attn_norm_num_groups"]
        if groups is not None:
            norm = partial(norm, num_groups=groups, group_size=None)
        elif self.config["resnet_time_scale_shift"] != "default":
            norm = None
        attention = partial(self.attention, norm=norm, rescale=rescale)
        return partial(MiddleLevel, block=block, attention=attention if self.config["add_attention"] else None)

    def _of_image(self, **fields: Any) -> ModuleDef:
        return partial(self.block, norm=self.quarter, rescale=math.sqrt(0.5), **fields)

    def _attention_of_image(self) -> ModuleDef:
        return partial(self.attention, norm=self.of_32, rescale=math.sqrt(0.5))


def _time(config: Mapping[str, Any]) -> ModuleDef:
    kinds = {
        "positional": partial(Sinusoidal, shift=config["freq_shift"], cos_first=config["flip_sin_to_cos"]),
        "fourier": Fourier,
        "learned": partial(LearnedTimes, steps=config["num_train_timesteps"]),
    }
    return _choice(config["time_embedding_type"], kinds, "time_embedding_type")


def _choice(value: Any, table: Mapping[Any, Any], entry: str) -> Any:
    if value not in table:
        raise ValueError(
            f"the configuration of a {CLASS} has {entry}={value!r}, which densezoo does not support; it supports"
            f" {', '.join(map(repr, table))}"
        )
    return table[value]
