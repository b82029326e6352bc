"""Conversion of weights from and to PyTorch, and densezoo's own files. Nothing in a file is executed."""

from densezoo.weights._convert import from_torch
from densezoo.weights._export import to_torch
from densezoo.weights._files import read_checkpoint
from densezoo.weights._hub import from_hub
from densezoo.weights._native import NotDescribable, load, load_with_metadata, save
from densezoo.weights._parameters import check_kinds, check_variables, image_channels
from densezoo.weights._plain import plain_unet
from densezoo.weights._settings import hub_settings, preprocessing
from densezoo.weights._transfer import start_from

__all__ = [
    "NotDescribable",
    "check_kinds",
    "check_variables",
    "from_hub",
    "from_torch",
    "hub_settings",
    "image_channels",
    "load",
    "load_with_metadata",
    "plain_unet",
    "preprocessing",
    "read_checkpoint",
    "save",
    "start_from",
    "to_torch",
]
