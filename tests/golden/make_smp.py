"""Golden outputs of segmentation_models_pytorch 0.6.0. Needs it and torch: python tests/golden/make_smp.py."""

import segmentation_models_pytorch as smp
from reference import write_model

CASES = {
    ("unet", "resnet34"): (3, 65, 47, 3),
    ("unet", "resnet50"): (1, 64, 96, 4),
    ("unet", "vgg11_bn"): (1, 65, 47, 1),
    ("unet", "vgg16"): (1, 32, 64, 3),
    ("fpn", "resnet18"): (2, 64, 96, 3),
    ("fpn", "resnext50_32x4d"): (1, 64, 96, 3),
    ("fpn", "vgg13_bn"): (1, 64, 32, 3),
}

QUICK = ("resnet34", "resnet18", "vgg11_bn")

if __name__ == "__main__":
    for (family, encoder), shape in CASES.items():
        create = {"unet": smp.Unet, "fpn": smp.FPN}[family]
        model = create(encoder, encoder_weights=None, in_channels=shape[-1], classes=2)
        write_model(f"smp_{family}_{encoder}", model, shape, family, encoder, quick=encoder in QUICK)
