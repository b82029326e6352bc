"""Helpers for error messages."""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_flags: dict[str, str] = {}  # not a context variable: messages are also made in threads that read files


@contextlib.contextmanager
def as_flags(flags: Mapping[str, str]) -> Iterator[None]:
    """Messages within this context name arguments as the options of a command line.

    Args:
        flags: the option of each argument, such as `{"crop_size": "--crop-size"}`. Other arguments keep their names.
    """
    before = dict(_flags)
    _flags.update(flags)
    try:
        yield
    finally:
        _flags.clear()
        _flags.update(before)


def option(name: str, *value: Any, typed: str | None = None) -> str:
    """Names an argument in a message: as in Python, or within `as_flags` as on the command line.

    Args:
        name: the argument.
        *value: the value to show, if any. A string is shown without quotes, as a description of the value.
        typed: the value as one types it on the command line, if it is a description.

    Example:
        >>> option("labels", {0: 0, 255: 1}), option("crop_size")
        ('labels={0: 0, 255: 1}', 'crop_size')
        >>> with as_flags({"labels": "--labels"}):
        ...     option("labels", {0: 0, 255: 1}), option("crop_size")
        ('--labels 0:0 255:1', 'crop_size')
    """
    flag = _flags.get(name)
    if not value:
        return flag or name
    if flag is None:
        return f"{name}={value[0] if isinstance(value[0], str) else repr(value[0])}"
    if value[0] is True:
        return flag
    return f"{flag} {_typed(value[0]) if typed is None else typed}"


def is_argument(name: str) -> bool:
    """Whether a user can pass this argument: always in Python, within `as_flags` only if it has an option.

    Example:
        >>> with as_flags({"labels": "--labels"}):
        ...     is_argument("labels"), is_argument("channels")
        (True, False)
    """
    return not _flags or name in _flags


def counted(number: int, one: str, several: str) -> str:
    """A number with its noun.

    Example:
        >>> counted(1, "image", "images"), counted(2, "image", "images")
        ('1 image', '2 images')
    """
    return f"{number} {one if number == 1 else several}"


def _typed(value: Any) -> str:
    if isinstance(value, Mapping):
        pairs = [(key if isinstance(key, tuple) else (key,), item) for key, item in value.items()]
        return " ".join(f"{','.join(map(str, key))}:{item}" for key, item in pairs)
    return " ".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


def shortened(items: Sequence[str], separator: str = "; ", limit: int = 6) -> str:
    """Joins the first few items of a list, and states how many more there are.

    Example:
        >>> shortened(["a", "b", "c", "d"], limit=2)
        'a; b; and 2 more'
    """
    more = [f"and {len(items) - limit} more"] if len(items) > limit else []
    return separator.join([*items[:limit], *more])


def indented(lines: Sequence[str], limit: int = 8) -> str:
    r"""Returns the first lines of a long list, each indented by two spaces.

    Example:
        >>> indented(["a", "b", "c"], limit=1)
        '  a\n  and 2 more'
    """
    return "  " + shortened(lines, "\n  ", limit)
