"""Writing files so that there is never half of one."""

import uuid
from collections.abc import Callable
from pathlib import Path


def replace(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` write a temporary file beside `path`, and puts it in its place only when it is whole.

    The temporary file begins with a dot and has the same ending, by which many a writer knows the format. A file that
    is replaced keeps its permissions, and a link to it stays one. Folders are made.

    Returns:
        The path as it was given.
    """
    given = Path(path)
    path = given.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        temporary.touch()
        mode = (path if path.exists() else temporary).stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # a writer may have its own: safetensors lets nobody but the owner read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return given
