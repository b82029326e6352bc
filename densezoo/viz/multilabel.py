"""Pictures of masks with several labels per pixel: a panel for each class."""

from collections.abc import Sequence

import numpy as np
from matplotlib.patches import Patch

from densezoo.viz import colors, legend

COLUMNS = 6
"""Panels side by side."""
CORRECT, MISSED, FALSE = (0, 114, 178), (240, 228, 66), (213, 0, 50)

Panel = tuple[str, np.ndarray] | None


def rows(
    pictures: Sequence[np.ndarray],
    truths: Sequence[np.ndarray] | None,
    guesses: Sequence[np.ndarray],
    class_names: Sequence[str] | None,
    ignore_index: int | None,
) -> tuple[list[list[Panel]], list[Patch]]:
    """The panels of each image in rows: the image, and for each class its pixels over the image in pale grey.

    Args:
        pictures: (h, w, 3) uint8.
        truths: (h, w, classes) of 0 and 1; None if there are none.
        guesses: (h, w, classes) of 0 and 1.
        class_names: names of the classes, None for numbers.
        ignore_index: a value of the truth that is no label.

    Returns:
        Rows of equal length, with None for an empty place, and the entries of the legend.
    """
    classes = guesses[0].shape[-1]
    names = [f"class {number}" for number in range(classes)] if class_names is None else list(class_names)
    sizes = {mask.shape[-1] for mask in [*guesses, *(truths or [])]}
    if sizes != {len(names)}:
        raise ValueError(f"there are {len(names)} classes, and the masks and predictions have {sorted(sizes)}")
    columns = min(COLUMNS, 1 + classes)
    lines: list[list[Panel]] = []
    for index, (picture, guess) in enumerate(zip(pictures, guesses, strict=True)):
        truth = None if truths is None else truths[index]
        panels: list[Panel] = [("image", picture)]
        for number, name in enumerate(names):
            known = None if truth is None else truth[..., number]
            panels.append(_panel(name, picture, known, guess[..., number], ignore_index))
        panels += [None] * (-len(panels) % columns)
        lines += [panels[start : start + columns] for start in range(0, len(panels), columns)]
    kinds = (
        {"predicted": CORRECT} if truths is None else {"correct": CORRECT, "missed": MISSED, "falsely predicted": FALSE}
    )
    if truths is not None and any((truth == ignore_index).any() for truth in truths if ignore_index is not None):
        kinds["ignored"] = colors.IGNORED
    return lines, [Patch(facecolor=legend.hexadecimal(colour), label=kind) for kind, colour in kinds.items()]


def _panel(
    name: str, picture: np.ndarray, truth: np.ndarray | None, guess: np.ndarray, ignore_index: int | None
) -> tuple[str, np.ndarray]:
    """One class of one image, with its IoU in the title."""
    panel = np.repeat(picture.mean(axis=-1, keepdims=True) * 0.5 + 110, 3, axis=-1)
    guess = guess != 0
    if truth is None:
        panel[guess] = CORRECT
        return name, panel.astype(np.uint8)
    counted = np.full(truth.shape, True) if ignore_index is None else np.not_equal(truth, ignore_index)
    wanted, guess = np.not_equal(truth, 0) & counted, guess & counted
    panel[wanted & guess], panel[wanted & ~guess], panel[guess & ~wanted] = CORRECT, MISSED, FALSE
    panel[~counted] = colors.IGNORED
    union = int((wanted | guess).sum())
    score = f"IoU {(wanted & guess).sum() / union:.2f}" if union else "in neither"
    return f"{name}: {score}", panel.astype(np.uint8)
