"""densezoo: the JAX/Flax model zoo for dense prediction."""

import importlib
from types import ModuleType

from densezoo import losses, metrics, ops
from densezoo.blocks import (
    CARAFE,
    BatchNorm,
    Bicubic,
    Bilinear,
    ConcatSkip,
    Conv,
    ConvNormAct,
    DoubleConv,
    DySample,
    GroupNorm,
    LateralAdd,
    Nearest,
    PixelShuffle,
    ResizeConv,
    TransposedConv,
)
from densezoo.compiling import compiler_options
from densezoo.decoders import FPNDecoder, FPNNeck, SegNetDecoder, UNetDecoder
from densezoo.encoders import VGG, BasicBlock, Bottleneck, PlainEncoder, ResNet
from densezoo.heads import SegmentationHead
from densezoo.inference import fold_batch_norm
from densezoo.models import PyramidModel, SegmentationModel
from densezoo.types import Pyramid
from densezoo.zoo import Blueprint, blueprints, create_encoder, create_model, list_encoders, list_models

__version__ = "0.1.0"

# These bring orbax, grain or matplotlib along, which take seconds to import: only on first use.
_ON_FIRST_USE = ("config", "data", "train", "viz", "weights")


def __getattr__(name: str) -> ModuleType:
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"densezoo.{name}")
    raise AttributeError(f"module 'densezoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE})
