"""Decoders: Pyramid -> one map, or for a neck a tuple of maps; an architecture a file."""

from densezoo.decoders.fpn import FPNDecoder, FPNNeck
from densezoo.decoders.segnet import SegNetDecoder
from densezoo.decoders.unet import UNetDecoder

__all__ = ["FPNDecoder", "FPNNeck", "SegNetDecoder", "UNetDecoder"]
