"""Golden outputs of torchvision 0.28.0. Needs it and torch: python tests/golden/make_torchvision.py."""

import torch
from reference import thin, write, write_encoder
from torchvision import models
from torchvision.models.convnext import CNBlockConfig, ConvNeXt
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.feature_extraction import create_feature_extractor


class Features(torch.nn.Module):
    """Outputs of some modules in a classifier's `features`, as NCHW, with the names of the whole classifier."""

    def __init__(self, model: torch.nn.Module, levels: tuple[int, ...], *, channels_last: bool = False):
        super().__init__()
        self.model, self.levels, self.channels_last = model, levels, channels_last
        self.state_dict, self.load_state_dict = model.state_dict, model.load_state_dict

    def forward(self, x):
        maps = []
        for index, module in enumerate(self.model.features):
            x = module(x)
            if index in self.levels:
                maps.append(x.permute(0, 3, 1, 2) if self.channels_last else x)
        return maps


class Tokens(torch.nn.Module):
    """The tokens after each block of a Vision Transformer, as NCHW; with the names of the classifier."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model
        self.state_dict, self.load_state_dict = model.state_dict, model.load_state_dict

    def forward(self, x):
        side = x.shape[-1] // self.model.patch_size
        x = self.model._process_input(x)
        x = torch.cat([self.model.class_token, x], 1) + self.model.encoder.pos_embedding
        maps = []
        for block in self.model.encoder.layers:
            x = block(x)
            maps.append(x[:, 1:].transpose(1, 2).unflatten(2, (side, side)))
        return maps


def write_small() -> None:
    """The families with their own names, as small as their constructors allow."""
    sizes = {"depths": [1, 1, 2, 1], "dims": [8, 12, 16, 20]}
    widths = [*sizes["dims"], None]
    settings = [CNBlockConfig(*s) for s in zip(widths[:-1], widths[1:], sizes["depths"], strict=True)]
    model = Features(ConvNeXt(settings, num_classes=2), (1, 3, 5, 7))
    write_encoder("torchvision_convnext", model, (1, 64, 96, 3), "convnext_tiny", quick=True, **sizes)

    sizes = {"depths": [2, 2, 2, 2], "embed_dim": 12, "num_heads": [1, 2, 3, 6]}
    swin = models.SwinTransformer([4, 4], window_size=[7, 7], num_classes=2, **sizes)
    # The last maps are smaller than the window.
    model = Features(swin, (1, 3, 5, 7), channels_last=True)
    write_encoder("torchvision_swin", model, (1, 65, 130, 3), "swin_t", quick=True, **sizes)

    sizes = {"embed_dim": 24, "depth": 4, "num_heads": 3, "grid": 2}
    vit = models.VisionTransformer(32, 16, 4, 3, 24, 96, num_classes=2)
    write_encoder("torchvision_vit", Tokens(vit), (1, 32, 32, 3), "vit_tiny_patch16_224", quick=True, **sizes)

    model = Features(models.mobilenet_v3_small(), (0, 1, 3, 8, 12))
    write_encoder("torchvision_mobilenet_v3_small", model, (1, 65, 47, 3), "mobilenetv3_small_100", quick=True)
    for size in ("b0", "b5"):
        model = Features(getattr(models, f"efficientnet_{size}")(), (1, 2, 3, 5, 7))
        write_encoder(f"torchvision_efficientnet_{size}", model, (1, 65, 47, 3), f"efficientnet_{size}")


def write_segmentation() -> None:
    """DeepLabV3 over MobileNetV3, with its auxiliary classifier."""
    model = models.segmentation.deeplabv3_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=2)
    write("torchvision_deeplabv3_mobilenet", model, (1, 65, 47, 3), lambda outputs: {"logits": outputs["out"]})


if __name__ == "__main__":
    layers = {"relu": "2", "layer1": "4", "layer2": "8", "layer3": "16", "layer4": "32"}
    extractor = create_feature_extractor(models.wide_resnet50_2(), layers)
    steps = {"2": 8, "4": 8, "8": 8, "16": 8, "32": 8}
    write(
        "torchvision_wide_resnet50_2",
        extractor,
        (1, 65, 96, 3),
        lambda features: {name: thin(features[name], step) for name, step in steps.items()},
    )
    write(
        "torchvision_resnet18_fpn",
        resnet_fpn_backbone(backbone_name="resnet18", weights=None),
        (1, 64, 96, 3),
        lambda maps: {name: thin(maps[name], 16) for name in "0123"},
    )
    write_small()
    write_segmentation()
