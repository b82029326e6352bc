"""Helpers for error messages."""

from collections.abc import Sequence


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
