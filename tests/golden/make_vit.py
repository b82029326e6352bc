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

    def __init__(self, name: str, **fields):
        super().__init__()
        self.encoder = TimmViTEncoder(name, pretrained=False, dynamic_img_size=True, dynamic_img_pad=True, **fields)

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
    # Narrow DINOv2 without and with registers, and DINOv3, plain and with gates.
    theirs = {"embed_dim": 16, "num_heads": 2}
    for name, extra, here in (
        ("vit_small_patch14_dinov2", {"img_size": 70}, {"grid": 5}),
        ("vit_small_patch14_reg4_dinov2", {"img_size": 70}, {"grid": 5}),
        ("vit_small_patch16_dinov3", {}, {}),
        ("vit_small_plus_patch16_dinov3", {}, {"mlp_features": 64}),
    ):
        write_encoder(
            f"timm_{name.replace('_patch', '')}",
            Encoder(name, **theirs, **extra),
            (1, 75, 61, 3),
            name,
            **theirs,
            **here,
        )
