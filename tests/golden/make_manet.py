"""Golden outputs of segmentation_models_pytorch 0.6.0's MA-Net. Needs it and torch: run this file."""

import segmentation_models_pytorch as smp
from reference import write_model

CASES = {"resnet18": (1, 64, 96, 3), "vgg11_bn": (2, 64, 32, 3)}

if __name__ == "__main__":
    for encoder, shape in CASES.items():
        model = smp.MAnet(encoder, encoder_weights=None, classes=2)
        write_model(f"smp_manet_{encoder}", model, shape, "manet", encoder, quick=encoder == "resnet18")
