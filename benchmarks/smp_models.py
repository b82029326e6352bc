"""The same models in segmentation_models_pytorch: their names in it, and how to create them."""

import importlib
from typing import Any

SMP_MODELS = {
    "unet": "Unet",
    "unetplusplus": "UnetPlusPlus",
    "manet": "MAnet",
    "linknet": "Linknet",
    "fpn": "FPN",
    "pspnet": "PSPNet",
    "pan": "PAN",
    "deeplabv3": "DeepLabV3",
    "deeplabv3plus": "DeepLabV3Plus",
    "upernet": "UPerNet",
    "segformer": "Segformer",
    "dpt": "DPT",
}
"""Names in densezoo and in segmentation_models_pytorch, which lacks all others."""

SIAMESE = "siamese_unet"


def smp_encoder(encoder: str) -> str | None:
    """An encoder's name in segmentation_models_pytorch, with "tu-" for timm's own; None if it lacks the encoder."""
    smp: Any = importlib.import_module("segmentation_models_pytorch")
    if encoder in smp.encoders.encoders:
        return encoder
    timm: Any = importlib.import_module("timm")
    return f"tu-{encoder}" if timm.is_model(encoder) else None


def make(model: str, encoder: str, classes: int, image_size: tuple[int, int] | None = None) -> Any:
    """Creates a model with random weights, in training mode, as is torch's default.

    Args:
        model: densezoo's name.
        encoder: densezoo's name.
        classes: channels of the logits.
        image_size: (height, width) of the images, for encoders that depend on it.

    Raises:
        KeyError: if it has no such model or encoder.
        ValueError: if it rejects the pair.
    """
    smp: Any = importlib.import_module("segmentation_models_pytorch")
    name = smp_encoder(encoder)
    if model not in SMP_MODELS or name is None:
        raise KeyError(f"{model}:{encoder}")
    fields = {"img_size": image_size} if "swin" in encoder and image_size else {}
    if model == "dpt":
        fields = {"dynamic_img_size": True}
    try:
        return getattr(smp, SMP_MODELS[model])(name, encoder_weights=None, classes=classes, **fields)
    except (AssertionError, NotImplementedError, RuntimeError, TypeError) as error:
        raise ValueError(f"segmentation_models_pytorch cannot make {model}:{encoder}: {error}") from error


def make_siamese(encoder: str, classes: int) -> Any:
    """Creates densezoo's `siamese_unet`, which decodes the absolute difference of two images' maps, from the U-Net."""
    torch: Any = importlib.import_module("torch")
    unet = make("unet", encoder, classes)

    class Siamese(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.encoder, self.decoder, self.segmentation_head = unet.encoder, unet.decoder, unet.segmentation_head

        def forward(self, before: Any, after: Any | None = None) -> Any:
            """Without a second batch of images, the mirror images of the first."""
            both = torch.cat([before, before.flip(3) if after is None else after])
            maps = (features.chunk(2) for features in self.encoder(both))
            return self.segmentation_head(self.decoder([(a - b).abs() for a, b in maps]))

    return Siamese()
