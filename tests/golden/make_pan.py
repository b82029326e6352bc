"""Golden outputs of PAN in segmentation_models_pytorch 0.6.0. Needs it and torch: python tests/golden/make_pan.py."""

import segmentation_models_pytorch as smp
from reference import write, write_model

if __name__ == "__main__":
    # It needs larger images, because it halves the map at 1/16 of the image three times.
    shape = (1, 128, 128, 3)
    model = smp.PAN("resnet18", encoder_weights=None, classes=1)
    write_model("smp_pan_resnet18", model, shape, "pan", "resnet18", quick=True)
    # At 1/4 of the image, to keep the file small; 9 x 11 pixels at 1/16.
    model = smp.PAN("resnet50", encoder_weights=None, classes=2, upsampling=1, decoder_interpolation="nearest")
    write("smp_pan_resnet50_nearest", model, (1, 144, 176, 3), lambda logits: {"quarter": logits})
