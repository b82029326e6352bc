"""Golden outputs of timm 1.0.31 and smp 0.6.0. Needs them and torch: python tests/golden/make_resnets.py."""

import segmentation_models_pytorch as smp
import timm
from reference import write_encoder, write_model


def timm_features(name, **fields):
    return timm.create_model(name, features_only=True, **fields)


def smp_features(name, **fields):
    encoder = smp.encoders.get_encoder(name, weights=None, **fields)
    encoder.register_forward_hook(lambda module, images, features: features[1:])  # without the image
    return encoder


if __name__ == "__main__":
    size = (1, 33, 47, 3)
    write_encoder("timm_resnet18d", timm_features("resnet18d"), size, "resnet18d", quick=True)
    write_encoder("timm_resnet50d", timm_features("resnet50d"), size, "resnet50d")
    write_encoder("timm_seresnet50", timm_features("seresnet50"), size, "seresnet50")
    write_encoder(
        "timm_resnet18_stride16",
        timm_features("resnet18", output_stride=16),
        size,
        "resnet18",
        output_stride=16,
        dilate_first=False,
    )
    write_encoder(
        "timm_resnet50d_stride8", timm_features("resnet50d", output_stride=8), size, "resnet50d", output_stride=8
    )
    write_encoder(
        "smp_resnet18_stride8",
        smp_features("resnet18", output_stride=8),
        size,
        "resnet18",
        quick=True,
        output_stride=8,
    )
    write_encoder("smp_resnet18_depth3", smp_features("resnet18", depth=3), size, "resnet18", coarsest=8)
    write_encoder("smp_se_resnet50", smp_features("se_resnet50"), size, "se_resnet50")
    shallow = smp_features("se_resnet50", depth=3)
    write_encoder("smp_se_resnet50_depth3", shallow, size, "se_resnet50", quick=True, coarsest=8)
    write_model(
        "smp_unet_se_resnet50",
        smp.Unet("se_resnet50", encoder_weights=None, classes=2),
        (1, 64, 32, 3),
        "unet",
        "se_resnet50",
    )
