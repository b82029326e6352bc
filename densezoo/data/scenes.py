"""Scenes of handwritten digits on photographs, with every kind of dense target and without downloads."""

from __future__ import annotations

import functools
import importlib.resources
import math
import operator
from typing import Any, Literal, SupportsIndex

import numpy as np
from PIL import Image

from densezoo.data import _instances
from densezoo.extras import require

Split = Literal["train", "val"]

# Pictures in the wheels of scikit-image and scikit-learn. The splits share none, and none shows digits.
_PICTURES: dict[Split, dict[str, tuple[str, ...]]] = {
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
_CELLS = 8 + 2 * _MARGIN
_LEVELS = 7  # scales in which every digit is precomputed
_RIM = np.float32(0.6)  # darkness of a rim one pixel wide, which separates overlapping digits
_BRIGHTEST = 0.95
_TRIES = 20
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class DigitScenes:
    """Digits of several sizes, colours and depths on crops of photographs, as a random-access source.

    The digits are scikit-learn's 1797 handwritten ones, enlarged smoothly; the backgrounds are photographs and textures
    from the wheels of scikit-image and scikit-learn. Nothing is downloaded. Scene i depends only on the arguments and
    i, and the number of scenes is unlimited. The splits share neither drawings of digits nor photographs.

    An item contains the following fields, where n = digits[1] and some rows may be empty:

    - image: (height, width, 3) uint8.
    - mask: (height, width) int32; 0 is the background, d + 1 the digit d: 11 classes.
    - instances: (height, width) int32; 0 is the background, k the digit in row k - 1 of boxes and labels.
    - boxes: (n, 4) float32, the visible extent as x0, y0, x1, y1 in pixels, half open; zeros in empty rows.
    - labels: (n,) int32, 0..9; -1 in empty rows.
    - depth: (height, width) float32, inversely proportional to a digit's scale: 1 for the largest digits; the
      background is 1.5 times as far as the smallest. Nearer digits hide farther ones.

    Attributes:
        num_classes: 11, the classes of the mask.
        sizes: the (height, width) of the scenes, in order.

    Example:
        >>> scenes = DigitScenes(1000, size=(64, 64), digits=(1, 3))
        >>> scene = scenes[7]
        >>> scene["image"].shape, scene["boxes"].shape
        ((64, 64, 3), (3, 4))
        >>> k = int(scene["instances"].max())
        >>> bool((scene["mask"][scene["instances"] == k] == scene["labels"][k - 1] + 1).all())
        True
    """

    num_classes = 11

    def __init__(
        self,
        num_scenes: int,
        *,
        size: tuple[int, int] = (96, 96),
        split: Split = "train",
        seed: int = 0,
        digits: tuple[int, int] = (2, 5),
        scales: tuple[float, float] = (2.0, 4.0),
        contrast: float = 0.35,
        min_visible: float = 0.6,
    ):
        """Prepares the digits in all scales, which takes a second the first time.

        Args:
            num_scenes: the length of the source.
            size: height and width of the scenes in pixels.
            split: which digits and photographs to use.
            seed: seed of the scenes.
            digits: minimum and maximum number of digits in a scene; fewer only if there is no space left.
            scales: minimum and maximum enlargement of the 8x8 digits.
            contrast: minimum difference in lightness, 0..1, between a digit and the mean of its background, where
                possible.
            min_visible: minimum share of a digit's pixels that nearer digits leave visible.

        Raises:
            ValueError: if an argument is out of its range, or the scene has no space for the largest digit.
            FileNotFoundError: if the installed scikit-image or scikit-learn lacks a picture.
        """
        if num_scenes < 1:
            raise ValueError(f"num_scenes={num_scenes}; expected 1 or more.")
        if split not in _PICTURES:
            raise ValueError(f"split={split!r}; expected 'train' or 'val'.")
        if seed < 0:
            raise ValueError(f"seed={seed}; expected 0 or more.")
        if not 1 <= digits[0] <= digits[1]:
            raise ValueError(f"digits={digits}; expected (least, most) with 1 <= least <= most.")
        if not 1 <= scales[0] <= scales[1]:
            raise ValueError(f"scales={scales}; expected (least, greatest) with 1 <= least <= greatest.")
        if not 0 <= contrast <= 0.5:
            raise ValueError(f"contrast={contrast}; expected 0 to 0.5.")
        if not 0 < min_visible <= 1:
            raise ValueError(f"min_visible={min_visible}; expected more than 0, up to 1.")
        largest = math.ceil(_CELLS * scales[1])
        if min(size) < largest:
            raise ValueError(
                f"size={size} has no room for digits enlarged {scales[1]} times, which take {largest}x{largest}; "
                f"expected {largest} pixels or more, or smaller scales."
            )
        self.num_scenes = num_scenes
        self.size = (int(size[0]), int(size[1]))
        self.split: Split = split
        self.seed = seed
        self.digits = digits
        self.scales = scales
        self.contrast = contrast
        self.min_visible = min_visible
        self._labels, self._levels, self._drawings = _digits(split, scales)
        self._pictures = _pictures(split, self.size)

    def __repr__(self) -> str:
        """Returns a name that is stable between runs, for Grain checkpoints."""
        return (
            f"DigitScenes({self.num_scenes}, size={self.size}, split={self.split!r}, seed={self.seed}, "
            f"digits={self.digits}, scales={self.scales}, contrast={self.contrast}, min_visible={self.min_visible})"
        )

    def __len__(self) -> int:
        """Returns the number of scenes."""
        return self.num_scenes

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The (height, width) of the scenes, in order."""
        return (self.size,) * self.num_scenes

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Composes one scene.

        Args:
            index: 0..len-1; negative indices count from the end.

        Returns:
            The fields listed in the class's docstring.

        Raises:
            IndexError: if there is no such scene.
        """
        number = operator.index(index)
        if not -self.num_scenes <= number < self.num_scenes:
            raise IndexError(f"scene {number} of {self.num_scenes}.")
        rng = np.random.default_rng([self.seed, list(_PICTURES).index(self.split), number % self.num_scenes])
        image = self._background(rng)
        mask = np.zeros(self.size, np.int32)
        instances = np.zeros(self.size, np.int32)
        depth = np.full(self.size, 1.5 * self.scales[1] / self.scales[0], np.float32)
        labels = np.full(self.digits[1], -1, np.int32)
        boxes = np.zeros((self.digits[1], 4), np.float32)

        placed = 0
        whole = np.ones(self.digits[1] + 1, np.int64)  # a digit's pixels before occlusion, by instance
        hidden = np.zeros(self.digits[1] + 1, np.int64)
        # From far to near, that is, from small to large.
        for level in np.sort(rng.integers(_LEVELS, size=rng.integers(self.digits[0], self.digits[1] + 1))):
            drawing = rng.integers(len(self._labels))
            alpha, rim = self._drawings[level][drawing].astype(np.float32) / np.float32(255)
            inside = alpha >= 0.5
            place = self._place(rng, inside, instances, whole, hidden)
            if place is None:
                continue
            self._paint(image[place], alpha, rim, self._colour(rng, image[place]))
            hidden += np.bincount(instances[place][inside], minlength=len(hidden))
            labels[placed] = self._labels[drawing]
            placed += 1
            whole[placed] = inside.sum()
            mask[place][inside] = self._labels[drawing] + 1
            instances[place][inside] = placed
            depth[place][inside] = self.scales[1] / self._levels[level]
        for k in range(placed):
            boxes[k] = _instances.extent_of(instances == k + 1)

        image += rng.normal(scale=rng.uniform(0.0, 0.03), size=image.shape).astype(np.float32)
        pixels = np.rint(np.clip(image, 0.0, 1.0) * 255).astype(np.uint8)
        return {
            "image": pixels,
            "mask": mask,
            "instances": instances,
            "boxes": boxes,
            "labels": labels,
            "depth": depth,
        }

    def _background(self, rng: np.random.Generator) -> np.ndarray:
        """Returns a crop of a photograph with random contrast and brightness, as float32."""
        picture = self._pictures[rng.integers(len(self._pictures))]
        top = rng.integers(picture.shape[0] - self.size[0] + 1)
        left = rng.integers(picture.shape[1] - self.size[1] + 1)
        crop = picture[top : top + self.size[0], left : left + self.size[1]]
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        crop = crop.astype(np.float32) / np.float32(255)
        mean = crop.mean()
        contrast = np.float32(rng.uniform(0.4, 1.0))
        return (crop - mean) * contrast + np.float32(rng.uniform(0.1, 0.4))

    def _place(
        self, rng: np.random.Generator, inside: np.ndarray, instances: np.ndarray, whole: np.ndarray, hidden: np.ndarray
    ) -> tuple[slice, slice] | None:
        """Finds a position where the digit leaves the others sufficiently visible."""
        for _ in range(_TRIES):
            top = rng.integers(self.size[0] - inside.shape[0] + 1)
            left = rng.integers(self.size[1] - inside.shape[1] + 1)
            place = (slice(top, top + inside.shape[0]), slice(left, left + inside.shape[1]))
            covered = np.bincount(instances[place][inside], minlength=len(hidden))
            if np.all((hidden + covered)[1:] <= (1 - self.min_visible) * whole[1:]):
                return place
        return None

    def _colour(self, rng: np.random.Generator, behind: np.ndarray) -> np.ndarray:
        """Draws a colour that is lighter than the mean background by at least the contrast."""
        least = min(float(behind.mean(axis=(0, 1)) @ _LUMA) + self.contrast, _BRIGHTEST)
        luminance = rng.uniform(least, _BRIGHTEST)
        tint = rng.uniform(0.3, 1.0, 3)
        colour = tint * luminance / (tint @ _LUMA)
        if colour.max() > 1:  # reduce the saturation at the same luminance
            colour = luminance + (colour - luminance) * (1 - luminance) / (colour.max() - luminance)
        return colour.astype(np.float32)

    @staticmethod
    def _paint(region: np.ndarray, alpha: np.ndarray, rim: np.ndarray, colour: np.ndarray) -> None:
        region *= 1 - _RIM * rim[:, :, None]
        region += alpha[:, :, None] * (colour - region)


def _cubic_weights(scale: float) -> np.ndarray:
    """Returns the matrix that enlarges a row of cells with Catmull-Rom splines, which keep the holes of an 8 open."""
    pixels = round(_CELLS * scale)
    centres = (np.arange(pixels) + 0.5) * _CELLS / pixels - 0.5
    distance = np.abs(centres[:, None] - np.arange(_CELLS))
    near = 1.5 * distance**3 - 2.5 * distance**2 + 1
    far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
    return np.select([distance < 1, distance < 2], [near, far], 0.0).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _digits(split: Split, scales: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
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
    levels = np.geomspace(*scales, _LEVELS)
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


@functools.lru_cache(maxsize=4)
def _pictures(split: Split, size: tuple[int, int]) -> list[np.ndarray]:
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
    for package, names in _PICTURES[split].items():
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
