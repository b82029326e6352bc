"""Golden outputs of DenseNets from smp 0.6.0. Needs it and torch: python tests/golden/make_densenet.py."""

import segmentation_models_pytorch as smp
from reference import write_encoder, write_model

if __name__ == "__main__":
    for depth, quick in ((5, False), (3, True)):
        encoder = smp.encoders.get_encoder("densenet121", weights=None, depth=depth)
        encoder.register_forward_hook(lambda module, images, features: features[1:])  # without the image
        case = "smp_densenet121" if depth == 5 else f"smp_densenet121_depth{depth}"
        write_encoder(case, encoder, (1, 37, 47, 3), "densenet121", quick=quick, coarsest=2**depth)
    write_model(
        "smp_unet_densenet161",
        smp.Unet("densenet161", encoder_weights=None, classes=2),
        (1, 64, 32, 3),
        "unet",
        "densenet161",
    )
