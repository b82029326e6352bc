"""Golden outputs of DeepLab in segmentation_models_pytorch 0.6.0 and torchvision 0.28.0.

Needs them and torch: python tests/golden/make_deeplab.py.
"""

import segmentation_models_pytorch as smp
from reference import write, write_model
from torchvision.models.segmentation import deeplabv3_resnet50

# densezoo's name, the encoder, the image, densezoo's fields, and the reference's name and fields.
CASES = {
    "smp_deeplabv3_resnet18": (
        "deeplabv3",
        "resnet18",
        (1, 64, 32, 3),
        {"atrous_rates": [1, 2, 3]},  # which a small map shows
        {"decoder_atrous_rates": (1, 2, 3)},
    ),
    "smp_deeplabv3_resnet50_separable": (
        "deeplabv3",
        "resnet50",
        (1, 32, 64, 1),
        {"separable": True, "atrous_rates": [1, 2, 5], "features": 64},
        {"decoder_aspp_separable": True, "decoder_atrous_rates": (1, 2, 5), "decoder_channels": 64},
    ),
    "smp_deeplabv3plus_resnet18": ("deeplabv3plus", "resnet18", (1, 64, 32, 3), {}, {}),
    "smp_deeplabv3plus_resnet50_plain": (
        "deeplabv3plus",
        "resnet50",
        (1, 32, 64, 4),
        {"separable": False, "atrous_rates": [1, 2, 3], "features": 64},
        {"decoder_aspp_separable": False, "decoder_atrous_rates": (1, 2, 3), "decoder_channels": 64},
    ),
}

if __name__ == "__main__":
    for case, (name, encoder, shape, fields, theirs) in CASES.items():
        create = {"deeplabv3": smp.DeepLabV3, "deeplabv3plus": smp.DeepLabV3Plus}[name]
        model = create(encoder, encoder_weights=None, in_channels=shape[-1], classes=2, **theirs)
        write_model(case, model, shape, name, encoder, quick=encoder == "resnet18", **fields)
    model = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=2, aux_loss=True)
    write("torchvision_deeplabv3_resnet50", model, (1, 65, 47, 3), lambda maps: {"logits": maps["out"]})
