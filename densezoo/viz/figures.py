"""Figures to files."""

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
    """Writes a figure to a file, whole or not at all, and closes it.

    The same figure gives the same file: no date is written into it.

    Args:
        figure: a matplotlib figure; it is empty afterwards, so that its memory is free.
        path: of the file; its ending (.png, .pdf, .svg, .jpg) says the format. Folders are made.
        dpi: pixels per inch.

    Returns:
        The path.

    Raises:
        ValueError: if matplotlib does not know the ending.
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
            f"the ending of {path.name!r} says no format that can be drawn; there are: {', '.join(formats)}"
        )
    replace(path, lambda temporary: figure.savefig(temporary, dpi=dpi, metadata=_NO_DATES.get(ending)))
    if "matplotlib.pyplot" in sys.modules:  # Where pyplot made the figure, pyplot holds on to it.
        sys.modules["matplotlib.pyplot"].close(figure)
    figure.clear()
    return path
