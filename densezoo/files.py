"""Writing files so that there is never half of one."""

import uuid
from collections.abc import Callable
from pathlib import Path


def replace(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` write a temporary file beside `path`, and puts it in its place only when it is whole.

    The temporary file has the same ending, by which many a writer knows the format. Folders are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # that of any new file here: some writers let nobody but the owner read
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    return path
