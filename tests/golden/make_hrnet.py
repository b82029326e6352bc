"""Golden outputs of timm's HRNet, alone and with its authors' head. Needs torch: python tests/golden/make_hrnet.py."""

import timm
import torch
import torch.nn.functional as F
from reference import write_encoder, write_model
from timm.models.hrnet import HighResolutionNetFeatures, cfg_cls
from torch import nn


class Segmenter(HighResolutionNetFeatures):
    """The head of Wang et al. 2019 (figure 4b), with the names of the authors' code."""

    def __init__(self, name: str, channels: int, classes: int):
        super().__init__(cfg_cls[name], in_chans=channels, feature_location="", out_indices=(1, 2, 3, 4))
        width = sum(self.stage4_cfg["num_channels"])
        mix = nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU()
        self.last_layer = nn.Sequential(*mix, nn.Conv2d(width, classes, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        def resize(x: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
            return F.interpolate(x, like.shape[2:], mode="bilinear", align_corners=True)

        maps = super().forward(x)
        return resize(self.last_layer(torch.cat([resize(y, maps[0]) for y in maps], 1)), x)


if __name__ == "__main__":
    for name in ("hrnet_w18_small", "hrnet_w18_small_v2"):
        encoder = timm.create_model(name, pretrained=False, features_only=True)
        write_encoder(f"timm_{name}", encoder, (1, 64, 96, 3), name)
    fields = {"features_only": True, "feature_location": "", "out_indices": (1, 2), "in_chans": 4}
    branches = timm.create_model("hrnet_w18_small", pretrained=False, **fields)
    write_encoder("timm_hrnet_w18_small_branches", branches, (1, 64, 32, 4), "hrnet_w18_small", incre=False, coarsest=8)
    model = Segmenter("hrnet_w18_small", 3, 2)
    write_model("hrnet_w18_small_segmentation", model, (1, 64, 96, 3), "hrnet", "hrnet_w18_small", quick=True)
