"""Encoders: image -> Pyramid, a family a file."""

from densezoo.encoders.convnext import CONVNEXTS, ConvNeXt
from densezoo.encoders.densenet import DENSENETS, DenseNet
from densezoo.encoders.efficientnet import EFFICIENTNETS, EfficientNet
from densezoo.encoders.hrnet import HRNETS, HRNet
from densezoo.encoders.mit import MITS, MixTransformer
from densezoo.encoders.mobilenet import MOBILENETS, MobileNetV2, MobileNetV3
from densezoo.encoders.plain import PlainEncoder
from densezoo.encoders.resnet import RESNETS, BasicBlock, Bottleneck, ResNet
from densezoo.encoders.senet import SENETS, CaffeBottleneck, SENet
from densezoo.encoders.swin import SWINS, Swin
from densezoo.encoders.vgg import VGG, VGGS
from densezoo.encoders.vit import VITS, ViT

ENCODERS = {
    "plain": PlainEncoder,
    **RESNETS,
    **SENETS,
    **DENSENETS,
    **VGGS,
    **CONVNEXTS,
    **HRNETS,
    **SWINS,
    **MITS,
    **VITS,
    **EFFICIENTNETS,
    **MOBILENETS,
}
"""Names, as timm and segmentation_models_pytorch have them, to constructors."""

__all__ = [
    "ENCODERS",
    "VGG",
    "BasicBlock",
    "Bottleneck",
    "CaffeBottleneck",
    "ConvNeXt",
    "DenseNet",
    "EfficientNet",
    "HRNet",
    "MixTransformer",
    "MobileNetV2",
    "MobileNetV3",
    "PlainEncoder",
    "ResNet",
    "SENet",
    "Swin",
    "ViT",
]
