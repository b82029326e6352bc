"""Golden outputs of Vision Transformers and DPT. Needs segmentation_models_pytorch 0.6.0, timm 1.0.31 and torch.

python tests/golden/make_vit.py
"""

import segmentation_models_pytorch as smp
from reference import write_encoder, write_model
from segmentation_models_pytorch.encoders.timm_vit import TimmViTEncoder
from torch import nn

TINY = "vit_tiny_patch16_224"


class Encoder(nn.Module):
    """smp's encoder for DPT, for any image size: the maps without the class tokens."""

    def __init__(self, name: str):
        super().__init__()
        self.encoder = TimmViTEncoder(name, pretrained=False, dynamic_img_size=True, dynamic_img_pad=True)

    def forward(self, x):
        return self.encoder(x)[0]


def dpt(channels: int, **fields) -> nn.Module:
    model = smp.DPT(f"tu-{TINY}", encoder_weights=None, in_channels=channels, classes=2, **fields)
    return model.eval()


if __name__ == "__main__":
    write_encoder("smp_vit_tiny", Encoder(TINY), (1, 65, 47, 3), TINY, quick=True)
    narrow = {"intermediate_features": (32, 64, 96, 128), "features": 32}
    theirs = {"decoder_intermediate_channels": (32, 64, 96, 128), "decoder_fusion_channels": 32}
    write_model(
        "smp_dpt_vit_tiny", dpt(3, dynamic_img_size=True, **theirs), (1, 64, 96, 3), "dpt", TINY, quick=True, **narrow
    )
    for readout in ("add", "ignore"):
        model = dpt(4, dynamic_img_size=True, decoder_readout=readout, **theirs)
        write_model(f"smp_dpt_{readout}", model, (1, 32, 64, 4), "dpt", TINY, readout=readout, **narrow)
