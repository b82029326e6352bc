"""Atomic file writes."""

import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path


def replace(path: str | Path, write: Callable[[Path], object]) -> Path:
    """Replaces a file atomically: `write` writes a temporary file next to `path`, which is renamed when complete.

    The temporary file starts with a dot and has the same extension, because many writers infer the format from it. A
    replaced file keeps its permissions, and symbolic links are kept. Missing folders are created.

    Returns:
        The given path.

    Raises:
        OSError: if the disk is full, with the path in the message, whichever error `write` raises.
    """
    given = Path(path)
    path = given.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{uuid.uuid4().hex}{path.suffix}")
    try:
        temporary.touch()
        mode = (path if path.exists() else temporary).stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # some writers set their own mode: safetensors makes files readable by the owner only
        temporary.replace(path)
    except Exception as error:
        if getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(given)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    return given
