"""densezoo: the JAX/Flax model zoo for dense prediction."""

from densezoo import ops
from densezoo.blocks import (
    BatchNorm,
    Bilinear,
    ConcatSkip,
    Conv,
    ConvNormAct,
    DoubleConv,
    GroupNorm,
    LateralAdd,
    Nearest,
    PixelShuffle,
    ResizeConv,
    TransposedConv,
)
from densezoo.decoders import FPNDecoder, FPNNeck, SegNetDecoder, UNetDecoder
from densezoo.encoders import VGG, BasicBlock, Bottleneck, PlainEncoder, ResNet
from densezoo.heads import SegmentationHead
from densezoo.models import PyramidModel, SegmentationModel
from densezoo.types import Pyramid
from densezoo.zoo import blueprints, create_encoder, create_model, list_encoders, list_models
