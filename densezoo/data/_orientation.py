"""The EXIF orientation: how a picture as stored is to be turned."""

from __future__ import annotations

import numpy as np

TAG = 0x0112


def orient(array: np.ndarray, orientation: int) -> np.ndarray:
    """Turns (h, w, ...) pixels as stored into pixels as seen, for the EXIF orientations 1 to 8."""
    if orientation in (2, 3):
        array = array[:, ::-1]
    if orientation in (3, 4):
        array = array[::-1]
    if orientation in (5, 6, 7, 8):
        array = array.swapaxes(0, 1)
    if orientation in (6, 7):
        array = array[:, ::-1]
    if orientation in (7, 8):
        array = array[::-1]
    return array


def seen(height: int, width: int, orientation: int) -> tuple[int, int]:
    """Gives the height and width as seen, from those as stored."""
    return (width, height) if orientation in (5, 6, 7, 8) else (height, width)
