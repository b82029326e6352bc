"""Golden outputs of segmentation_models_pytorch's PSPNet. Needs it and torch: python tests/golden/make_pspnet.py."""

import segmentation_models_pytorch as smp
from reference import write_model

# At 32x48 the map of 1/8 is smaller than the finest grid.
CASES = {"resnet18": (1, 64, 96, 3), "vgg11_bn": (1, 32, 48, 1)}

if __name__ == "__main__":
    for encoder, shape in CASES.items():
        model = smp.PSPNet(encoder, encoder_weights=None, in_channels=shape[-1], classes=2)
        write_model(f"smp_pspnet_{encoder}", model, shape, "pspnet", encoder, quick=encoder == "resnet18")
