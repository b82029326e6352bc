"""Prediction for pictures that are too large for one pass."""

from densezoo.tiling.tiling import predict_tiled

__all__ = ["predict_tiled"]
