"""Golden outputs of ConvNeXt. Needs timm 1.0.31, segmentation_models_pytorch 0.6.0 and torch.

python tests/golden/make_convnext.py
"""

from functools import partial

import segmentation_models_pytorch as smp
import timm
from reference import write_encoder, write_model

if __name__ == "__main__":
    # What its classifier's checkpoint has, under the names there.
    classifier = timm.create_model("convnextv2_atto", num_classes=3)
    classifier.forward = partial(classifier.forward_intermediates, intermediates_only=True)
    write_encoder("timm_convnextv2_atto", classifier, (1, 65, 47, 3), "convnextv2_atto", quick=True)

    tiny = timm.create_model("convnext_tiny", features_only=True, in_chans=1)
    write_encoder("timm_convnext_tiny", tiny, (1, 64, 96, 1), "convnext_tiny")

    theirs = {"depths": (1, 1, 2, 1), "dims": (8, 16, 24, 32)}
    for stride, shape in ((8, (1, 65, 47, 3)), (16, (2, 64, 96, 3))):
        model = timm.create_model("convnext_tiny", features_only=True, output_stride=stride, **theirs)
        write_encoder(f"timm_convnext_stride{stride}", model, shape, "convnext_tiny", output_stride=stride, **theirs)

    model = smp.Unet("tu-convnextv2_atto", encoder_weights=None, in_channels=4, classes=2)
    write_model("smp_unet_convnextv2_atto", model, (1, 64, 96, 4), "unet", "convnextv2_atto")
