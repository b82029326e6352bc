"""Golden outputs of segmentation_models_pytorch 0.6.0's LinkNet. Needs it and torch: run this file."""

import segmentation_models_pytorch as smp
from reference import write_model

CASES = {"resnet18": (1, 64, 96, 3), "vgg11_bn": (2, 64, 32, 3), "resnet50": (1, 64, 96, 4)}

if __name__ == "__main__":
    for encoder, shape in CASES.items():
        model = smp.Linknet(encoder, encoder_weights=None, in_channels=shape[-1], classes=2)
        write_model(f"smp_linknet_{encoder}", model, shape, "linknet", encoder, quick=encoder == "resnet18")
