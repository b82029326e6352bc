"""A model by names alone: what a command line takes and a JSON file holds."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp

from densezoo.files import replace
from densezoo.models import SegmentationModel
from densezoo.zoo import MODELS, SKIPS, UPSAMPLERS, create_model, look_up

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """What it takes to build a segmentation model again and to prepare images for it as in training.

    Attributes:
        model: one of `list_models()`.
        encoder: one of `list_encoders()`; None for the model's usual one.
        num_classes: channels of the logits; 1 for a binary mask.
        channels: of the images.
        upsample: one of `densezoo.zoo.UPSAMPLERS`; None for the decoder's own.
        skip: one of `densezoo.zoo.SKIPS`, for a U-Net; None for its own.
        mean: per channel, subtracted from images in 0..1; empty for ImageNet's (three channels) or 0.5.
        std: per channel, by which they are then divided; empty for ImageNet's (three channels) or 0.25.

    Example:
        >>> config = ModelConfig(model="fpn", num_classes=3)
        >>> config.encoder, config.mean
        ('resnet34', (0.485, 0.456, 0.406))
        >>> type(config.build()).__name__
        'SegmentationModel'
    """

    model: str = "unet"
    encoder: str | None = None
    num_classes: int = 1
    channels: int = 3
    upsample: str | None = None
    skip: str | None = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self):
        rgb = self.channels == 3
        defaults = {
            "encoder": look_up(self.model, MODELS, "model").encoder,
            "mean": IMAGENET_MEAN if rgb else (0.5,) * self.channels,
            "std": IMAGENET_STD if rgb else (0.25,) * self.channels,
        }
        for name, default in defaults.items():
            value = getattr(self, name) or default
            object.__setattr__(self, name, tuple(value) if isinstance(value, list) else value)
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"mean and std need {self.channels} numbers, one a channel; got {self.mean} and {self.std}"
            )

    def build(self, *, bfloat16: bool = False, frozen: tuple[str, ...] = ()) -> SegmentationModel:
        """The model; `bfloat16` computes in that type, with float32 parameters.

        Raises:
            ValueError: an unknown name.
            TypeError: the model does not take an upsampler or a skip.
        """
        fields: dict[str, Any] = {}
        if self.upsample is not None:
            fields["upsample"] = look_up(self.upsample, UPSAMPLERS, "upsampler")
        if self.skip is not None:
            fields["skip"] = look_up(self.skip, SKIPS, "skip")
        dtype = jnp.bfloat16 if bfloat16 else None
        return create_model(self.model, self.encoder, self.num_classes, frozen=frozen, dtype=dtype, **fields)

    def save(self, path: str | Path) -> None:
        """Writes the configuration as JSON, whole or not at all."""
        text = json.dumps(dataclasses.asdict(self), indent=2) + "\n"
        replace(path, lambda temporary: temporary.write_text(text))

    @classmethod
    def load(cls, path: str | Path) -> "ModelConfig":
        """Reads what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it is not a configuration.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"{path} does not exist: expected the --out folder of a training")
        try:
            return cls(**json.loads(path.read_text()))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path} is not the configuration of a model: {error}") from error
