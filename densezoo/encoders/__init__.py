"""Encoders map images to a pyramid. Each file has one family."""

# Each imported file registers its encoders by name.

from densezoo.encoders.base import ENCODERS, Encoder, register_encoders
from densezoo.encoders.convnext import ConvNeXt
from densezoo.encoders.densenet import DenseNet
from densezoo.encoders.efficientnet import EfficientNet
from densezoo.encoders.hrnet import HRNet
from densezoo.encoders.mit import MixTransformer
from densezoo.encoders.mobilenet import MobileNetV2, MobileNetV3
from densezoo.encoders.plain import PlainEncoder
from densezoo.encoders.resnet import BasicBlock, Bottleneck, ResNet
from densezoo.encoders.senet import CaffeBottleneck, SENet
from densezoo.encoders.swin import Swin
from densezoo.encoders.vgg import VGG
from densezoo.encoders.vit import ViT
