"""Scenes of handwritten digits on photographs, with every kind of dense target and without downloads."""

from __future__ import annotations

import math
from typing import Any, SupportsIndex

import numpy as np

from densezoo.data import _instances
from densezoo.data._scene_parts import CELLS, LEVELS, PICTURES, Split, digits_of, pictures_of, scene_number
from densezoo.messages import option

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
            raise ValueError(f"{option('num_scenes', num_scenes)}; expected 1 or more.")
        if split not in PICTURES:
            raise ValueError(f"{option('split', repr(split))}; expected 'train' or 'val'.")
        if seed < 0:
            raise ValueError(f"{option('seed', seed)}; expected 0 or more.")
        if not 1 <= digits[0] <= digits[1]:
            raise ValueError(f"{option('digits', digits)}; expected (least, most) with 1 <= least <= most.")
        if not 1 <= scales[0] <= scales[1]:
            raise ValueError(f"{option('scales', scales)}; expected (least, greatest) with 1 <= least <= greatest.")
        if not 0 <= contrast <= 0.5:
            raise ValueError(f"{option('contrast', contrast)}; expected 0 to 0.5.")
        if not 0 < min_visible <= 1:
            raise ValueError(f"{option('min_visible', min_visible)}; expected more than 0, up to 1.")
        largest = math.ceil(CELLS * scales[1])
        if min(size) < largest:
            typed = str(size[0]) if size[0] == size[1] else None  # scripts take one number for a square
            raise ValueError(
                f"{option('size', tuple(size), typed=typed)} has no room for digits enlarged {scales[1]} times, which"
                f" take {largest}x{largest}; expected {largest} pixels or more, or smaller {option('scales')}."
            )
        self.num_scenes = num_scenes
        self.size = (int(size[0]), int(size[1]))
        self.split: Split = split
        self.seed = seed
        self.digits = digits
        self.scales = scales
        self.contrast = contrast
        self.min_visible = min_visible
        self._labels, self._levels, self._drawings = digits_of(split, scales)
        self._pictures = pictures_of(split, self.size)

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
        number = scene_number(index, self.num_scenes)
        rng = np.random.default_rng([self.seed, list(PICTURES).index(self.split), number])
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
        for level in np.sort(rng.integers(LEVELS, size=rng.integers(self.digits[0], self.digits[1] + 1))):
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
