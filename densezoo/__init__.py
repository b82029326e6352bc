"""densezoo: a JAX/Flax model zoo for dense prediction."""

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from densezoo import diffusion, losses, metrics, ops
from densezoo.blocks import (
    ASPP,
    CARAFE,
    SCSE,
    AttentionGate,
    BatchNorm,
    Bicubic,
    Bilinear,
    ChannelGate,
    ConcatSkip,
    Conv,
    ConvNormAct,
    DoubleConv,
    DropPath,
    DySample,
    FrozenBatchNorm,
    GroupNorm,
    LateralAdd,
    LayerNorm,
    Nearest,
    NoSkip,
    PixelShuffle,
    ResidualDoubleConv,
    ResizeConv,
    SpatialDropout,
    TransposedConv,
    register_blocks,
)
from densezoo.blueprint import Blueprint, register
from densezoo.compiling import compiler_options
from densezoo.decoders import (
    DeepLabV3Decoder,
    DeepLabV3PlusDecoder,
    DPTDecoder,
    FPNDecoder,
    FPNNeck,
    HRNetDecoder,
    LinknetDecoder,
    MAnetDecoder,
    PANDecoder,
    PSPNetDecoder,
    SegFormerDecoder,
    SegNetDecoder,
    SNUNetDecoder,
    UNetDecoder,
    UNetPlusPlusDecoder,
    UPerNetDecoder,
)
from densezoo.encoders import (
    VGG,
    BasicBlock,
    Bottleneck,
    CaffeBottleneck,
    ConvNeXt,
    DenseNet,
    EfficientNet,
    Encoder,
    HRNet,
    MixTransformer,
    MobileNetV2,
    MobileNetV3,
    PlainEncoder,
    ResNet,
    SENet,
    Swin,
    ViT,
    register_encoders,
)
from densezoo.heads import BoxHead, DPTDepthHead, DPTHead, FCOSHead, MaskHead, RetinaNetHead, RPNHead, SegmentationHead
from densezoo.inference import Inference, Loaded, compile, load_compiled
from densezoo.inspect.folding import fold_batch_norm
from densezoo.inspect.summary import Layer, Summary, summary
from densezoo.models import RCNN, PyramidModel, SegmentationModel, SiameseModel, SingleStage, detect, panoptic
from densezoo.naming import Naming, Rule
from densezoo.preprocessing import Preprocessing
from densezoo.tiling import predict_tiled
from densezoo.types import Detections, Pyramid
from densezoo.zoo import blueprints, create_encoder, create_model, list_encoders, list_models

if TYPE_CHECKING:
    from densezoo.exporting import export
    from densezoo.exporting_onnx import export_onnx
    from densezoo.nnx import from_nnx, to_nnx
    from densezoo.predictor import Predictor, load_predictor
    from densezoo.weights import load, save

__version__ = "0.1.0"

# Imported on first use, because they import Orbax, Grain or Matplotlib, which takes seconds.
_ON_FIRST_USE = ("data", "nnx", "tasks", "train", "viz", "weights")
_HOMES = {
    "Predictor": "predictor",
    "export": "exporting",
    "export_onnx": "exporting_onnx",
    "from_nnx": "nnx",
    "load": "weights",
    "load_predictor": "predictor",
    "save": "weights",
    "to_nnx": "nnx",
}


def __getattr__(name: str) -> Any:
    if name in _ON_FIRST_USE:
        return importlib.import_module(f"densezoo.{name}")
    if name in _HOMES:
        return getattr(importlib.import_module(f"densezoo.{_HOMES[name]}"), name)
    if name == "Room":
        warnings.warn("densezoo.Room has been renamed to densezoo.Layer", DeprecationWarning, stacklevel=2)
        return Layer
    raise AttributeError(f"module 'densezoo' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ON_FIRST_USE, *_HOMES})
