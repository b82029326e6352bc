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
from densezoo.weights._repository import Config

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
_COUNTS = (
    *("in_channels", "out_channels", "layers_per_block", "attention_head_dim", "norm_num_groups"),
    *("attn_norm_num_groups", "num_class_embeds", "time_embedding_dim", "num_train_timesteps"),
)
_ACTIVATIONS = {
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "mish": jax.nn.mish,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "relu": jax.nn.relu,
}
_CONDITIONING = {"default": "shift", "scale_shift": "scale_shift"}
_RESAMPLING = {"conv": False, "resnet": True}


def unet(config: Config) -> DiffusionUNet:
    """Creates the model that a configuration of diffusers' `UNet2DModel` describes.

    Raises:
        ValueError: if it names something unknown. The message lists the alternatives.
    """
    given = {
        name: value for name, value in config.options.items() if not name.startswith("_") and name != "sample_size"
    }
    if unknown := [name for name, value in given.items() if name not in _DEFAULTS and value is not None]:
        raise ValueError(f"{config.source}: unknown options, which may change the results: {unknown}")
    config = Config(_DEFAULTS | given, config.source)
    for name in _COUNTS:
        if config.options[name] is not None:
            config.size(name, 1)
    features = config.sizes("block_out_channels", (1,))
    levels = _Levels(config)
    names = {way: config.get(f"{way}_block_types", ("",)) for way in ("down", "up")}
    if not len(features) == len(names["down"]) == len(names["up"]):
        raise ValueError(
            f"{config.source}: block_out_channels={features} and the types of blocks differ in number: {names}"
        )
    kinds = {"down": levels.down(), "up": levels.up()}
    factories = {
        way: tuple(
            _choose(config, f"{way}_block_types", name.removeprefix("UNetRes"), kinds[way]) for name in names[way]
        )
        for way in names
    }
    middle = _choose(config, "mid_block_type", config.options["mid_block_type"], {"UNetMidBlock2D": True, None: False})
    kind = config.options["class_embed_type"]
    return DiffusionUNet(
        features=features,
        down=factories["down"],
        middle=levels.middle() if middle else None,
        up=factories["up"],
        layers=config.size("layers_per_block", 2),
        out_channels=config.size("out_channels", 3),
        num_classes=config.options["num_class_embeds"] if kind is None else None,
        null_label=False,
        labels_as=_choose(config, "class_embed_type", kind, {None: "table", "timestep": "time", "identity": "vector"}),
        time=_time(config),
        condition_features=config.options["time_embedding_dim"],
        norm=levels.norm or levels.quarter,
        center=config.get("center_input_sample", False),
        divide_by_time=config.options["time_embedding_type"] == "fourier",
    )


class _Levels:
    """The factories of levels for the names of blocks in a configuration."""

    def __init__(self, config: Config):
        self.config = config
        epsilon, groups = config.get("norm_eps", 1e-5), config.options["norm_num_groups"]
        self.norm: ModuleDef | None = None if groups is None else partial(GroupNorm, num_groups=groups, epsilon=epsilon)
        self.quarter = partial(GroupNorm, group_size=4, epsilon=epsilon)
        self.of_32 = partial(GroupNorm, num_groups=32, epsilon=epsilon)
        self.block = partial(
            ResidualBlock,
            conditioning=config.choose("resnet_time_scale_shift", "default", _CONDITIONING),
            norm=self.norm,
            act=config.choose("act_fn", "silu", _ACTIVATIONS),
            dropout=config.get("dropout", 0.0),
        )
        self.attention = partial(SelfAttention, head_features=config.options["attention_head_dim"], norm=self.norm)

    def down(self) -> dict[str, ModuleDef]:
        padding = _choose(
            self.config, "downsample_padding", self.config.get("downsample_padding", 1), {0: "SAME", 1: 1}
        )
        strided = partial(StridedConv, padding=padding)
        residual = self.config.choose("downsample_type", "conv", _RESAMPLING)
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
        residual = self.config.choose("upsample_type", "conv", _RESAMPLING)
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
                block=self._of_image(
                    first_norm=self.of_32
                ),  # of a quarter of the skip's channels, but all of the map's
                attention=self._attention_of_image(),
                attend_once=True,
            ),
        }

    def middle(self) -> ModuleDef:
        rescale = 1 / self.config.get("mid_block_scale_factor", 1.0)
        norm = self.norm or self.quarter
        block = partial(self.block, norm=norm, rescale=rescale)
        groups = self.config.options["attn_norm_num_groups"]
        if groups is not None:
            norm = partial(norm, num_groups=groups, group_size=None)
        elif self.config.options["resnet_time_scale_shift"] != "default":
            norm = None
        attention = partial(self.attention, norm=norm, rescale=rescale)
        return partial(
            MiddleLevel, block=block, attention=attention if self.config.get("add_attention", True) else None
        )

    def _of_image(self, **fields: Any) -> ModuleDef:
        return partial(self.block, norm=self.quarter, rescale=math.sqrt(0.5), **fields)

    def _attention_of_image(self) -> ModuleDef:
        return partial(self.attention, norm=self.of_32, rescale=math.sqrt(0.5))


def _time(config: Config) -> ModuleDef:
    shift, cos_first = config.get("freq_shift", 0), config.get("flip_sin_to_cos", True)
    if config.options["time_embedding_type"] == "learned" and config.options["num_train_timesteps"] is None:
        raise ValueError(f"{config.source}: time_embedding_type='learned' needs num_train_timesteps")
    kinds = {
        "positional": partial(Sinusoidal, shift=shift, cos_first=cos_first),
        "fourier": Fourier,
        "learned": partial(LearnedTimes, steps=config.options["num_train_timesteps"]),
    }
    return config.choose("time_embedding_type", "positional", kinds)


def _choose(config: Config, option: str, value: Any, choices: Mapping[Any, Any]) -> Any:
    """The entry of `choices` for a value, which may be None."""
    if not isinstance(value, str | int | None) or value not in choices:
        raise config.unsupported(option, value, ", ".join(map(repr, choices)))
    return choices[value]
