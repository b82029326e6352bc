"""Saving arrays as picture files."""

from pathlib import Path

import numpy as np
from jaxtyping import Int, UInt8
from PIL import Image

from densezoo.files import replace


def save_image(image: UInt8[np.ndarray, "h w 3"] | UInt8[np.ndarray, "h w"], path: str | Path) -> Path:
    """Writes an RGB or grey picture atomically. The path's suffix determines the format. Missing folders are created.

    Returns:
        The path.

    Raises:
        OSError: if the file cannot be written.
    """
    return _write(Image.fromarray(image), path)


def save_mask(
    mask: Int[np.ndarray, "h w"], path: str | Path, *, palette: UInt8[np.ndarray, "n 3"] | None = None
) -> Path:
    """Writes a mask atomically as a PNG whose values are the classes. A palette makes it viewable.

    Args:
        mask: classes, 0 to 65535. The file has 8 bits; if a class is above 255, or the palette has more than 256
            colours, it has 16 bits and no palette.
        path: of the file, ending in .png. Folders are made.
        palette: a colour for each class. All masks of one palette have the same number of bits.

    Returns:
        The path.

    Raises:
        ValueError: if the path does not end in .png, or a value is negative or above 65535.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_mask(np.array([[0, 7]]), Path(folder) / "mask.png")
        ...     np.asarray(Image.open(path)).tolist()
        [[0, 7]]
    """
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"a mask is written as .png, which keeps its values; got {path}")
    if mask.min() < 0 or mask.max() > 65535:
        raise ValueError(f"a PNG holds the values 0 to 65535; this mask has {mask.min()} to {mask.max()}")
    wide = mask.max() > 255 or (palette is not None and len(palette) > 256)
    picture = Image.fromarray(mask.astype(np.uint16 if wide else np.uint8))
    if palette is not None and not wide:
        picture.putpalette(palette.astype(np.uint8).tobytes())
    return _write(picture, path)


def _write(picture: Image.Image, path: str | Path) -> Path:
    return replace(path, picture.save)
