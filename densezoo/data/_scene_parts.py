"""The digits and photographs that scenes are composed of."""

from __future__ import annotations

import functools
import importlib.resources
import math
import operator
from typing import Literal, SupportsIndex

import numpy as np
from PIL import Image

from densezoo.extras import require

Split = Literal["train", "val"]

# Pictures in the wheels of scikit-image and scikit-learn. The splits share none, and none shows digits.
PICTURES: dict[Split, dict[str, tuple[str, ...]]] = {
    "train": {
        "skimage": (
            "astronaut.png",
            "brick.png",
            "camera.png",
            "chelsea.png",
            "coins.png",
            "grass.png",
            "hubble_deep_field.jpg",
            "motorcycle_left.png",
            "retina.jpg",
            "rocket.jpg",
        ),
        "sklearn": ("flower.jpg",),
    },
    "val": {"skimage": ("coffee.png", "gravel.png", "ihc.png", "moon.png"), "sklearn": ("china.jpg",)},
}

_PLACES = {"skimage": ("skimage", "data"), "sklearn": ("sklearn.datasets", "images")}
_PACKAGES = {"skimage": "scikit-image", "sklearn": "scikit-learn"}


_LONG_SIDE = 640  # larger pictures are reduced to this, so that a crop has visible structure


_MARGIN = 1  # empty cells around the 8x8 of a digit, for the soft ends of its strokes


CELLS = 8 + 2 * _MARGIN


LEVELS = 7  # scales in which every digit is precomputed


def _cubic_weights(scale: float) -> np.ndarray:
    """Returns the matrix that enlarges a row of cells with Catmull-Rom splines, which keep the holes of an 8 open."""
    pixels = round(CELLS * scale)
    centres = (np.arange(pixels) + 0.5) * CELLS / pixels - 0.5
    distance = np.abs(centres[:, None] - np.arange(CELLS))
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return np.select([distance < 1, distance < 2], [near, far], 0.0).astype(np.float32)


@functools.lru_cache(maxsize=4)
def digits_of(split: Split, scales: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Returns the labels, the scales, and for each scale all digits' opacity and rim (n, 2, height, width)."""
    pixels, labels = require("sklearn.datasets").load_digits(return_X_y=True)
    held_out = np.zeros(len(labels), bool)
    for digit in range(10):  # every fifth drawing of each digit: by position alone, some digits would be rare
        held_out[np.flatnonzero(labels == digit)[4::5]] = True
    chosen = held_out == (split == "val")
    cells = np.pad(
        pixels[chosen].reshape(-1, 8, 8).astype(np.float32) / np.float32(16),
        ((0, 0), (_MARGIN, _MARGIN), (_MARGIN, _MARGIN)),
    )
    levels = np.geomspace(*scales, LEVELS)
    drawings = []
    for scale in levels:
        weights = _cubic_weights(float(scale))
        smooth = np.einsum("pi,nij,qj->npq", weights, cells, weights, optimize=True)
        # A steeper slope, so that an edge is about a pixel wide at any scale.
        alpha = np.clip((smooth - 0.45) * np.float32(scale) + 0.5, 0.0, 1.0)
        rim = alpha
        for axis in (1, 2):
            rim = np.maximum.reduce([rim, np.roll(rim, 1, axis), np.roll(rim, -1, axis)])  # the margin is empty
        drawings.append(np.rint(np.stack([alpha, rim], axis=1) * 255).astype(np.uint8))
    return labels[chosen].astype(np.int32), levels, drawings


def scene_number(index: SupportsIndex, count: int) -> int:
    """The number of a scene, where a negative index counts from the end.

    Raises:
        IndexError: if there is no such scene.
    """
    number = operator.index(index)
    if not -count <= number < count:
        raise IndexError(f"scene {number} of {count}.")
    return number % count


@functools.lru_cache(maxsize=4)
def pictures_of(split: Split, size: tuple[int, int]) -> list[np.ndarray]:
    """Returns every photograph twice, at full and at half size, none smaller than the scenes."""
    pictures = []
    for picture in photographs(split).values():
        picture.thumbnail((_LONG_SIDE, _LONG_SIDE), Image.Resampling.LANCZOS)
        for reduction in (1, 2):
            factor = max(size[0] / picture.height, size[1] / picture.width, 1 / reduction)
            shape = (math.ceil(picture.width * factor), math.ceil(picture.height * factor))
            pictures.append(np.asarray(picture.resize(shape, Image.Resampling.LANCZOS)))
    return pictures


def photographs(split: Split) -> dict[str, Image.Image]:
    """Reads the photographs and textures of a split in RGB, by file name."""
    pictures = {}
    for package, names in PICTURES[split].items():
        module, folder = _PLACES[package]
        for name in names:
            file = importlib.resources.files(require(module)).joinpath(folder, name)
            if not file.is_file():
                raise FileNotFoundError(
                    f"{file}: the installed {_PACKAGES[package]} has no such picture, which synthetic scenes need: "
                    f"pip install --upgrade --force-reinstall {_PACKAGES[package]}."
                )
            with file.open("rb") as stream, Image.open(stream) as image:
                pictures[name] = image.convert("RGB")
    return pictures
