"""torchvision's and timm's names of VGG."""

from densezoo.encoders import VGG
from densezoo.weights.names.rules import Family, Naming, Rule, backbone, ignoring


def _vgg(encoder: VGG) -> list[Naming]:
    namings = backbone([Rule(r"features_(\d+)", r"features.\1")])
    built = encoder.stage_sizes[: len(encoder.reductions) + (not encoder.full_resolution)]
    if len(built) == len(encoder.stage_sizes):
        return namings
    # Convolution, norm and activation, and a pooling after each stage.
    layers = sum(size * (2 if encoder.norm is None else 3) + 1 for size in built)
    deeper = "|".join(map(str, range(layers, 100)))
    return ignoring(namings, rf"features\.({deeper})\..*")


FAMILIES = {VGG: Family(_vgg, stem="features_0")}
