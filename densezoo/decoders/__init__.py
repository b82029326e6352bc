"""Decoders map a pyramid to one map, and necks to a tuple of maps. Each file has one architecture."""

# Each imported file registers its families, in the order of the README's table.

from densezoo.decoders.unet import UNetDecoder
from densezoo.decoders.unetplusplus import UNetPlusPlusDecoder
from densezoo.decoders.snunet import SNUNetDecoder
from densezoo.decoders.manet import MAnetDecoder
from densezoo.decoders.linknet import LinknetDecoder
from densezoo.decoders.fpn import FPNDecoder, FPNNeck
from densezoo.decoders.segnet import SegNetDecoder
from densezoo.decoders.segformer import SegFormerDecoder
from densezoo.decoders.dpt import DPTDecoder
from densezoo.decoders.deeplab import DeepLabV3Decoder, DeepLabV3PlusDecoder
from densezoo.decoders.pan import PANDecoder
from densezoo.decoders.pspnet import PSPNetDecoder
from densezoo.decoders.upernet import UPerNetDecoder
from densezoo.decoders.hrnet import HRNetDecoder
