"""What the example scripts share: one clear message for a user's mistake, in place of a traceback."""

import contextlib
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Prints the errors that name their cause (bad values, files, arguments, a full disk) and exits with status 1."""
    try:
        yield
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as error:
        print(f"interrupted: {error}", file=sys.stderr)
        sys.exit(130)
