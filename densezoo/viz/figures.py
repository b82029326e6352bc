"""Saving figures to files."""

import sys
import textwrap
from pathlib import Path

from matplotlib.figure import Figure

from densezoo.files import replace

_NO_DATES = {".png": {"Software": None}, ".pdf": {"CreationDate": None}, ".svg": {"Date": None}}


def wrapped(text: str, inches: float, fontsize: float) -> str:
    """Breaks a text into lines of at most about this width."""
    return "\n".join(textwrap.wrap(text, max(20, int(inches * 72 / (0.56 * fontsize)))))


def save(figure: Figure, path: str | Path, *, dpi: int = 150) -> Path:
    """Writes a figure to a file atomically, and clears it.

    The file contains no date, so that the same figure always produces the same file.

    Args:
        figure: a matplotlib figure; it is empty afterwards, to free its memory.
        path: path of the file; its suffix (.png, .pdf, .svg, .jpg) determines the format. Missing folders are created.
        dpi: resolution in dots per inch.

    Returns:
        The path.

    Raises:
        ValueError: if matplotlib does not support the suffix.
        OSError: if the file cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(Figure(), Path(folder) / "empty.png").name
        'empty.png'
    """
    path = Path(path)
    formats = sorted(figure.canvas.get_supported_filetypes())
    ending = path.suffix.lower()
    if ending[1:] not in formats:
        raise ValueError(
            f"{path.name!r} has no suffix of a supported picture format; expected one of: {', '.join(formats)}"
        )
    replace(path, lambda temporary: figure.savefig(temporary, dpi=dpi, metadata=_NO_DATES.get(ending)))
    if "matplotlib.pyplot" in sys.modules:  # A figure that pyplot created stays in memory until pyplot closes it.
        sys.modules["matplotlib.pyplot"].close(figure)
    figure.clear()
    return path
