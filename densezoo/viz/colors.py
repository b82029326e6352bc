"""Colours for classes. Functions that turn images and masks into uint8 pictures."""

import functools
from typing import Any

import numpy as np
from jaxtyping import Int, UInt8
from numpy.typing import ArrayLike

IGNORED = (200, 200, 200)
"""Colour of ignored pixels; no class colour is similar to it."""

_FIRST = (
    (0, 0, 0),
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)

# How people without one type of cone see colours, as a change of linear RGB.
_DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)
_PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)


def palette(n: int) -> UInt8[np.ndarray, "n 3"]:
    """Colours for `n` classes, distinguishable also by people with red-green colour blindness.

    The first 8 are those of Okabe and Ito, black first (for the background). Each further colour is the one furthest
    from all previous ones, for normal, deuteranopic and protanopic vision. So `palette(n)` starts with
    `palette(n - 1)`. After 256 colours, all except black repeat.

    Args:
        n: number of classes. Above about 20, colours alone do not distinguish classes.

    Returns:
        RGB, 0 to 255.

    Raises:
        ValueError: if `n` is less than 1.

    Example:
        >>> palette(3).tolist()
        [[0, 0, 0], [230, 159, 0], [86, 180, 233]]

    References:
        Okabe and Ito, Color universal design, 2008. https://jfly.uni-koeln.de/color/
        Machado et al., A physiologically-based model for simulation of color vision deficiency, 2009 (severity 1.0)
        Ottosson, A perceptual color space for image processing, 2020. https://bottosson.github.io/posts/oklab/
    """
    if n < 1:
        raise ValueError(f"a palette has at least 1 colour; got n={n}")
    numbers = np.arange(n)
    return _colours(min(n, 256))[np.where(numbers < 256, numbers, 1 + (numbers - 1) % 255)]


@functools.cache
def _colours(n: int) -> np.ndarray:
    chosen = list(_FIRST[:n])
    levels = np.linspace(0, 255, 16).round().astype(np.uint8)
    candidates = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), -1).reshape(-1, 3)
    # On a screen, all dark colours look black.
    candidates = candidates[_seen(candidates)[0, :, 0] > 0.36]
    seen = _seen(candidates)

    def distance(colour: Any) -> np.ndarray:
        """Distance from each candidate, for the type of vision that distinguishes them least."""
        return np.linalg.norm(seen - _seen(np.array([colour])), axis=-1).min(axis=0)

    # White is the paper, and grey marks ignored pixels.
    nearest = functools.reduce(np.minimum, map(distance, [*_FIRST, IGNORED, (255, 255, 255)]))
    while len(chosen) < n:
        best = candidates[nearest.argmax()]
        chosen.append(tuple(best))
        nearest = np.minimum(nearest, distance(best))
    return np.array(chosen, np.uint8)


def _seen(rgb: np.ndarray) -> np.ndarray:
    """Colours in Oklab, where distances approximate perceived differences, for three types of vision."""
    x = rgb / 255.0
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    seen = np.stack([linear, linear @ _DEUTERANOPIA.T, linear @ _PROTANOPIA.T]).clip(0, 1)
    cones = [
        [0.4122214708, 0.5363325363, 0.0514459929],
        [0.2119034982, 0.6806995451, 0.1073969566],
        [0.0883024619, 0.2817188376, 0.6299787005],
    ]
    lab = [
        [0.2104542553, 0.7936177850, -0.0040720468],
        [1.9779984951, -2.4285922050, 0.4505937099],
        [0.0259040371, 0.7827717662, -0.8086757660],
    ]
    return np.cbrt(seen @ np.transpose(cones)) @ np.transpose(lab)


def to_rgb(image: ArrayLike) -> UInt8[np.ndarray, "h w 3"]:
    """Converts an image to RGB in uint8 for display.

    - Channels: with 1 or 2, the first one as grey; with 3 or more, the first three as red, green and blue.
    - Values: uint8, and floats within 0..1 (with a tolerance of 0.01), are shown unchanged; bool as black and white.
      Others (16-bit, standardised, 0..255 in float) are stretched, all channels alike, so that the image's 1st
      percentile is black and its 99th white. NaN and infinite values are black.

    Args:
        image: (h, w) or (h, w, c).

    Raises:
        ValueError: if the image does not have 2 or 3 axes, or an axis is empty.

    Example:
        >>> to_rgb(np.array([[0.0, 1.0]])).tolist()
        [[[0, 0, 0], [255, 255, 255]]]
    """
    x = np.asarray(image)
    if x.ndim not in (2, 3) or 0 in x.shape:
        raise ValueError(f"expected one image of shape (h, w) or (h, w, c), got shape {x.shape}")
    x = x[..., None] if x.ndim == 2 else x
    x = np.repeat(x[..., :1], 3, axis=-1) if x.shape[-1] < 3 else x[..., :3]
    if x.dtype == np.uint8:
        return x.copy()
    whole = np.issubdtype(x.dtype, np.integer)
    x = x.astype(np.float64)
    finite = np.isfinite(x)
    least, greatest = x.min(where=finite, initial=np.inf), x.max(where=finite, initial=-np.inf)
    low, high = (0.0, 1.0) if not whole and least >= -0.01 and greatest <= 1.01 else np.percentile(x[finite], (1, 99))
    x = (np.where(finite, x, low) - low) / (high - low if high > low else 1.0)
    return (x.clip(0, 1) * 255).round().astype(np.uint8)


def colorize(
    mask: ArrayLike, palette: ArrayLike | None = None, *, ignore_index: int | None = None
) -> UInt8[np.ndarray, "h w 3"]:
    """Converts a mask of class indices to colours.

    Args:
        mask: (h, w), integers or bool.
        palette: a colour for each class; by default `palette(n)` for as many classes as the mask needs.
        ignore_index: label of ignored pixels, which become light grey.

    Raises:
        TypeError: if the mask contains floats.
        ValueError: if the mask is not (h, w), or contains a label without a colour in the palette.

    Example:
        >>> colorize(np.array([[0, 1, 255]]), ignore_index=255).tolist()
        [[[0, 0, 0], [230, 159, 0], [200, 200, 200]]]
    """
    labels = to_labels(mask)
    known = labels if ignore_index is None else labels[labels != ignore_index]
    colours = _palette_for(known, palette)
    if known.size and (known.min() < 0 or known.max() >= len(colours)):
        wrong = known.min() if known.min() < 0 else known.max()
        raise ValueError(
            f"the mask contains the label {wrong}, but the palette has colours for 0..{len(colours) - 1}: pass a longer"
            " palette, or ignore_index if the label is not a class"
        )
    ignored = np.zeros(labels.shape, bool) if ignore_index is None else labels == ignore_index
    return np.where(ignored[..., None], np.array(IGNORED, np.uint8), colours[np.where(ignored, 0, labels)])


def overlay(
    image: ArrayLike,
    mask: ArrayLike,
    *,
    alpha: float = 0.5,
    palette: ArrayLike | None = None,
    ignore_index: int | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """Blends an image with the colours of a mask.

    Args:
        image: (h, w) or (h, w, c), shown as by `to_rgb`.
        mask: (h, w), class indices.
        alpha: weight of the colours: 0 shows only the image, 1 only the mask.
        palette: as in `colorize`.
        ignore_index: label of ignored pixels, which show only the image.

    Raises:
        TypeError: if the mask contains floats.
        ValueError: if image and mask differ in size, `alpha` is outside 0..1, or as in `colorize`.
    """
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must be between 0 (the image) and 1 (the mask); got {alpha}")
    below, above = to_rgb(image), colorize(mask, palette, ignore_index=ignore_index)
    if below.shape != above.shape:
        raise ValueError(f"the mask has {above.shape[:2]} pixels and the image {below.shape[:2]}: resize one of them")
    weight = np.full(above.shape[:2], alpha)
    if ignore_index is not None:
        weight[to_labels(mask) == ignore_index] = 0
    return (below + weight[..., None] * (above.astype(np.float64) - below)).round().astype(np.uint8)


def to_labels(mask: ArrayLike, *, several: bool = False) -> Int[np.ndarray, "h w *classes"]:
    """A mask as an integer array, checked: (h, w), or with `several` labels per pixel (h, w, classes)."""
    labels = np.asarray(mask)
    if labels.ndim != 2 + several or 0 in labels.shape:
        shape = "(h, w, classes), as the predictions have" if several else "(h, w)"
        raise ValueError(
            f"expected one mask of shape {shape}, got shape {labels.shape}: of logits take argmax(axis=-1)"
        )
    if not (np.issubdtype(labels.dtype, np.integer) or labels.dtype == bool):
        raise TypeError(
            f"a mask contains class indices, which are integers; got {labels.dtype}: for logits, use argmax(axis=-1)"
        )
    return labels.astype(np.int64)


def enough(label: Any) -> int:
    """Number of colours for labels up to this one. Bounded by 16-bit labels, so that one odd label costs no memory."""
    return min(2**16, max(2, int(label) + 1))


def _palette_for(labels: np.ndarray, given: ArrayLike | None) -> np.ndarray:
    if given is None:
        return palette(enough(labels.max(initial=0)))
    colours = np.asarray(given)
    if colours.ndim != 2 or colours.shape[1] != 3 or colours.dtype != np.uint8:
        raise ValueError(f"a palette is uint8 of shape (n, 3); got {colours.dtype} of shape {colours.shape}")
    return colours
