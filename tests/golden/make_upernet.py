"""Golden outputs of segmentation_models_pytorch's UPerNet. Needs it and torch: python tests/golden/make_upernet.py."""

import segmentation_models_pytorch as smp
from reference import write_model

CASES = {"resnet18": (1, 64, 96, 3), "vgg11_bn": (1, 32, 64, 4)}

if __name__ == "__main__":
    for encoder, shape in CASES.items():
        model = smp.UPerNet(encoder, encoder_weights=None, in_channels=shape[-1], classes=2)
        write_model(f"smp_upernet_{encoder}", model, shape, "upernet", encoder, quick=encoder == "resnet18")
