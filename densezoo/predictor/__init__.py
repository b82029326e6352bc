"""Prediction: from an image file's pixels to the prediction of a task."""

from densezoo.predictor.loading import load_predictor
from densezoo.predictor.predictor import Predictor

__all__ = ["Predictor", "load_predictor"]
