"""Encoders: image -> Pyramid, a family a file."""

from densezoo.encoders.plain import PlainEncoder
from densezoo.encoders.resnet import RESNETS, BasicBlock, Bottleneck, ResNet
from densezoo.encoders.vgg import VGG, VGGS

ENCODERS = {"plain": PlainEncoder, **RESNETS, **VGGS}
"""Names, as timm and segmentation_models_pytorch have them, to constructors."""

__all__ = ["ENCODERS", "VGG", "BasicBlock", "Bottleneck", "PlainEncoder", "ResNet"]
