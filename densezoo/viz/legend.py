"""The legend of class names."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.patches import Patch
from numpy.typing import ArrayLike

from densezoo.viz import colors

MOST = 40
"""The maximum number of classes in a legend."""


def class_palette(
    masks: Sequence[np.ndarray], class_names: Sequence[str] | None, ignore_index: int | None = None
) -> np.ndarray:
    """Colours for all classes that have a name or occur in a mask.

    Raises:
        ValueError: if a label has no name.
    """
    classes = [label for label in _pixels(masks) if label != ignore_index]
    if class_names is not None and classes and not 0 <= max(classes) < len(class_names):
        raise ValueError(f"there are {len(class_names)} class_names, but a mask contains the label {max(classes)}")
    return colors.palette(colors.enough(max([len(class_names or ()) - 1, *classes])))


def class_entries(
    masks: Sequence[np.ndarray],
    class_names: Sequence[str] | None,
    palette: ArrayLike,
    ignore_index: int | None = None,
    most: int = MOST,
) -> list[Patch]:
    """A legend entry for each class that occurs; if there are more than `most`, for the most frequent ones."""
    pixels = _pixels(masks)
    classes = [label for label in pixels if label != ignore_index]
    shown = sorted(sorted(classes, key=lambda label: -pixels[label])[:most])
    names = {label: class_names[label] if class_names is not None else f"class {label}" for label in shown}
    entries = [Patch(facecolor=hexadecimal(np.asarray(palette)[label]), label=name) for label, name in names.items()]
    if ignore_index is not None and ignore_index in pixels:
        entries.append(Patch(facecolor=hexadecimal(colors.IGNORED), label="ignored"))
    if len(shown) < len(classes):
        entries.append(Patch(facecolor="none", label=f"and {len(classes) - len(shown)} more"))
    return entries


def per_line(entries: Sequence[Patch], width: float) -> int:
    """How many entries of the longest one's width fit side by side into `width` inches."""
    longest = max((len(str(entry.get_label())) for entry in entries), default=0)
    return max(1, min(len(entries), int(width / (0.55 + 0.085 * longest))))


def _pixels(masks: Sequence[np.ndarray]) -> dict[int, int]:
    labels, counts = np.unique(np.concatenate([mask.ravel() for mask in masks]), return_counts=True)
    return dict(zip(labels.tolist(), counts.tolist(), strict=True))


def hexadecimal(colour: Any) -> str:
    """Converts RGB values from 0 to 255 to a colour string for matplotlib."""
    return "#{:02x}{:02x}{:02x}".format(*(int(value) for value in colour))
