"""Golden outputs of EfficientNet in timm 1.0.31 and segmentation_models_pytorch 0.6.0, which it needs, and torch.

python tests/golden/make_efficientnet.py
"""

import segmentation_models_pytorch as smp
import timm
import torch
from reference import write_encoder, write_model


class WithoutImage(torch.nn.Module):
    """An encoder of segmentation_models_pytorch without its first feature, the image."""

    def __init__(self, encoder: torch.nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, image):
        return self.encoder(image)[1:]


if __name__ == "__main__":
    for name, shape, fields, quick in (
        ("efficientnet_b0", (1, 65, 47, 3), {}, True),
        ("tf_efficientnet_b1", (1, 65, 47, 3), {"output_stride": 8}, False),
    ):
        model = timm.create_model(name, pretrained=False, features_only=True, **fields)
        write_encoder(f"timm_{name}", model, shape, name, quick=quick, **fields)
    encoder = smp.encoders.get_encoder("efficientnet-b2", weights=None, output_stride=16)
    write_encoder("smp_efficientnet-b2", WithoutImage(encoder), (1, 65, 47, 3), "efficientnet-b2", output_stride=16)
    model = smp.Unet("efficientnet-b0", encoder_weights=None, in_channels=4, classes=2)
    write_model("smp_unet_efficientnet-b0", model, (1, 65, 47, 4), "unet", "efficientnet-b0")
