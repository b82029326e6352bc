"""Golden outputs of smp 0.6.0's U-Net++, and of its U-Net with attention. Needs it and torch: run this file."""

import segmentation_models_pytorch as smp
from reference import write, write_model

CASES = {"resnet18": (1, 64, 96, 3), "vgg11_bn": (1, 32, 64, 3)}

if __name__ == "__main__":
    for encoder, shape in CASES.items():
        model = smp.UnetPlusPlus(encoder, encoder_weights=None, classes=2)
        write_model(f"smp_unetplusplus_{encoder}", model, shape, "unetplusplus", encoder, quick=encoder == "resnet18")
    # What to build here holds a factory, which the file cannot: tests/decoders/test_unet.py says it.
    for case, create in {"unet": smp.Unet, "unetplusplus": smp.UnetPlusPlus}.items():
        model = create("resnet18", encoder_weights=None, classes=2, decoder_attention_type="scse")
        write(f"smp_{case}_scse", model, (1, 64, 32, 3), lambda logits: {"logits": logits})
