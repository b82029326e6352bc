"""Golden outputs of torchvision 0.28.0. Needs it and torch: python tests/golden/make_torchvision.py."""

from reference import thin, write
from torchvision.models import wide_resnet50_2
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.models.feature_extraction import create_feature_extractor

if __name__ == "__main__":
    layers = {"relu": "2", "layer1": "4", "layer2": "8", "layer3": "16", "layer4": "32"}
    extractor = create_feature_extractor(wide_resnet50_2(), layers)
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
