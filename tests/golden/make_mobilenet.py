"""Golden outputs of the MobileNets in timm 1.0.31 and segmentation_models_pytorch 0.6.0, which it needs, and torch.

python tests/golden/make_mobilenet.py
"""

import segmentation_models_pytorch as smp
import timm
from reference import write_encoder, write_model

if __name__ == "__main__":
    for name, fields, quick in (
        ("mobilenetv2_100", {"output_stride": 8}, False),
        ("mobilenetv3_small_100", {}, True),
        ("tf_mobilenetv3_large_100", {"output_stride": 16}, False),
    ):
        model = timm.create_model(name, pretrained=False, features_only=True, **fields)
        write_encoder(f"timm_{name}", model, (1, 65, 47, 3), name, quick=quick, **fields)
    model = smp.Unet("mobilenet_v2", encoder_weights=None, in_channels=1, classes=2)
    write_model("smp_unet_mobilenet_v2", model, (1, 65, 47, 1), "unet", "mobilenet_v2")
