"""Writing files so that there is never half of one."""

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path


def replace(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Lets `write` write a temporary file beside `path`, and puts it in its place only when it is whole.

    The temporary file begins with a dot and has the same ending, by which many a writer knows the format. A file that
    is replaced keeps its permissions, and a link to it stays one. Folders are made.

    Returns:
        The path as it was given.

    Raises:
        OSError: if there is no room, with the path in its message, whatever error `write` raises then.
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
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(given)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return given
