"""Scenes of handwritten digits before and after some of them appear or vanish, without downloads."""

from __future__ import annotations

from typing import Any, SupportsIndex

import numpy as np

from densezoo.data._scene_parts import Split, scene_number
from densezoo.data.scenes import DigitScenes

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)


class ChangeScenes(DigitScenes):
    """Two pictures of each scene of digits, between which some digits appear and some vanish.

    What differs besides is no change: light (brightness, contrast, and a gradient across the picture), colours of the
    background as with the seasons, and a shift of up to some pixels, as of pictures that are aligned imperfectly.
    Scene i depends only on the arguments and i. The splits share neither drawings of digits nor photographs.

    An item contains the following fields:

    - image_before, image_after: (height, width, 3) uint8.
    - change: (height, width) int32; 1 where a digit appears or vanishes, as the picture with that digit shows it.

    Attributes:
        num_classes: 2, the classes of `change`.
        sizes: the (height, width) of the scenes, in order.

    Example:
        >>> scenes = ChangeScenes(1000, size=(64, 64))
        >>> scene = scenes[7]
        >>> scene["image_before"].shape, scene["image_after"].shape, scene["change"].shape
        ((64, 64, 3), (64, 64, 3), (64, 64))
    """

    num_classes = 2

    def __init__(
        self,
        num_scenes: int,
        *,
        size: tuple[int, int] = (96, 96),
        split: Split = "train",
        seed: int = 0,
        digits: tuple[int, int] = (2, 5),
        scales: tuple[float, float] = (2.0, 3.0),
        contrast: float = 0.35,
        changes: float = 0.5,
        light: float = 0.3,
        season: float = 0.3,
        shift: int = 1,
    ):
        """Prepares the digits in all scales, which takes a second the first time.

        Args:
            num_scenes: the length of the source.
            size: height and width of the pictures in pixels.
            split: which digits and photographs to use.
            seed: seed of the scenes.
            digits: minimum and maximum number of digits in both pictures together; fewer if there is no space left.
            scales: minimum and maximum enlargement of the 8x8 digits.
            contrast: minimum difference in lightness, 0..1, between a digit and the mean of its background, where
                possible.
            changes: probability that a digit appears or vanishes.
            light: strength of the changes in light, 0 to 1.
            season: strength of the changes in the background's colours, 0 to 1.
            shift: maximum shift between the pictures in pixels, in each direction.

        Raises:
            ValueError: if an argument is out of its range, or the scene has no space for the largest digit.
            FileNotFoundError: if the installed scikit-image or scikit-learn lacks a picture.
        """
        for name, value in (("changes", changes), ("light", light), ("season", season)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name}={value}; expected 0 to 1.")
        if shift < 0:
            raise ValueError(f"shift={shift}; expected 0 or more.")
        # Both pictures are windows of a larger scene.
        whole = (size[0] + 2 * shift, size[1] + 2 * shift)
        super().__init__(
            num_scenes,
            size=whole,
            split=split,
            seed=seed,
            digits=digits,
            scales=scales,
            contrast=contrast,
            min_visible=1.0,
        )
        self.window = (int(size[0]), int(size[1]))
        self.changes, self.light, self.season, self.shift = changes, light, season, shift

    def __repr__(self) -> str:
        """Returns a name that is stable between runs, for Grain checkpoints."""
        return (
            f"ChangeScenes({self.num_scenes}, size={self.window}, split={self.split!r}, seed={self.seed}, "
            f"digits={self.digits}, scales={self.scales}, contrast={self.contrast}, changes={self.changes}, "
            f"light={self.light}, season={self.season}, shift={self.shift})"
        )

    @property
    def sizes(self) -> tuple[tuple[int, int], ...]:
        """The (height, width) of the scenes, in order."""
        return (self.window,) * self.num_scenes

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Composes both pictures of one scene.

        Args:
            index: 0..len-1; negative indices count from the end.

        Returns:
            The fields listed in the class's docstring.

        Raises:
            IndexError: if there is no such scene.
        """
        number = scene_number(index, self.num_scenes)
        # Another stream than that of `DigitScenes`, which has three numbers.
        rng = np.random.default_rng([self.seed, self.split == "val", number, 1])
        before = self._background(rng)
        after = _recoloured(before, rng, self.season)
        change = np.zeros((2, *self.size), bool)
        instances = np.zeros(self.size, np.int32)
        none = np.zeros(self.digits[1] + 1, np.int64)
        for k in range(rng.integers(self.digits[0], self.digits[1] + 1)):
            drawing = rng.integers(len(self._labels))
            alpha, rim = self._drawings[rng.integers(len(self._levels))][drawing].astype(np.float32) / np.float32(255)
            place = self._place(rng, rim > 0, instances, none, none)
            if place is None:
                continue
            instances[place][rim > 0] = k + 1
            colour = self._colour(rng, before[place])
            changes, appears = rng.random() < self.changes, rng.random() < 0.5
            for time, canvas in enumerate((before, after)):
                if not changes or appears == (time == 1):
                    self._paint(canvas[place], alpha, rim, colour)
                    change[time][place] |= changes & (alpha >= 0.5)
        corner = np.array([self.shift, self.shift])
        corners = corner, corner + rng.integers(-self.shift, self.shift + 1, 2)
        cuts = [tuple(slice(low, low + side) for low, side in zip(c, self.window, strict=True)) for c in corners]
        pictures = [_lit(canvas[cut], rng, self.light) for canvas, cut in zip((before, after), cuts, strict=True)]
        changed = change[0][cuts[0]] | change[1][cuts[1]]
        return {"image_before": pictures[0], "image_after": pictures[1], "change": changed.astype(np.int32)}


def _recoloured(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """The picture with other colours: each channel becomes a mixture of all, and the saturation changes."""
    mixture = np.eye(3) + rng.uniform(-0.5, 0.5, (3, 3)) * strength
    mixture /= mixture.sum(1, keepdims=True)  # grey stays grey
    mixed = image @ mixture.T.astype(np.float32)
    grey = (mixed @ _LUMA)[..., None]
    return grey + (mixed - grey) * np.float32(1 + rng.uniform(-1, 1) * strength)


def _lit(image: np.ndarray, rng: np.random.Generator, strength: float) -> np.ndarray:
    """The picture in another light, with noise, as uint8."""
    height, width = image.shape[:2]
    direction = rng.uniform(0, 2 * np.pi)
    y, x = np.linspace(-1, 1, height), np.linspace(-1, 1, width)
    gradient = np.sin(direction) * y[:, None] + np.cos(direction) * x[None]
    gain = 1 + strength * (rng.uniform(-0.5, 0.5) + 0.3 * rng.uniform() * gradient)
    lit = image * gain[..., None] + strength * rng.uniform(-0.2, 0.2) + rng.normal(scale=0.01, size=image.shape)
    return np.rint(np.clip(lit, 0, 1) * 255).astype(np.uint8)
