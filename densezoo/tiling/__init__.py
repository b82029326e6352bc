"""Prediction for pictures that are too large for one pass."""

from densezoo.tiling.tiling import OnTile, Stages, Tiling, predict_tiled

__all__ = ["OnTile", "Stages", "Tiling", "predict_tiled"]
