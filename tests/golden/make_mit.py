"""Golden outputs of Mix Transformers and SegFormer. Needs segmentation_models_pytorch 0.6.0 and torch.

python tests/golden/make_mit.py
"""

import segmentation_models_pytorch as smp
from reference import write_encoder, write_model
from torch import nn


class Encoder(nn.Module):
    """smp's encoder without its first two outputs, the image and an empty map."""

    def __init__(self, name: str, **fields):
        super().__init__()
        self.encoder = smp.encoders.get_encoder(name, weights=None, **fields)

    def forward(self, x):
        return self.encoder(x)[2:]


def segformer(encoder: str, channels: int, **fields) -> nn.Module:
    return smp.Segformer(encoder, encoder_weights=None, in_channels=channels, classes=2, **fields)


if __name__ == "__main__":
    write_encoder("smp_mit_b0", Encoder("mit_b0"), (1, 65, 47, 3), "mit_b0", quick=True)
    write_encoder("smp_mit_b0_dilated", Encoder("mit_b0", output_stride=8), (1, 64, 96, 3), "mit_b0", output_stride=8)
    write_encoder("smp_mit_b1_depth4", Encoder("mit_b1", depth=4), (1, 64, 33, 3), "mit_b1", coarsest=16)
    write_model("smp_segformer_mit_b0", segformer("mit_b0", 3), (1, 64, 96, 3), "segformer", "mit_b0", quick=True)
    write_model("smp_segformer_resnet18", segformer("resnet18", 4), (1, 64, 96, 4), "segformer", "resnet18")
    narrow = segformer("vgg11_bn", 1, decoder_segmentation_channels=32)
    write_model("smp_segformer_vgg11_bn", narrow, (1, 32, 96, 1), "segformer", "vgg11_bn", features=32)
