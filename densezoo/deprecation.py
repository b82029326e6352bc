"""Deprecated field names, which still work and warn."""

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

C = TypeVar("C", bound=type)


def renamed(**new_names: str) -> Callable[[C], C]:
    """A class decorator that keeps the old names of renamed arguments and attributes, with a DeprecationWarning.

    Args:
        **new_names: old names to new ones.
    """

    def decorate(cls: C) -> C:
        initialise = cls.__init__

        @functools.wraps(initialise)
        def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
            for old in [name for name in kwargs if name in new_names]:
                _warn(cls, old, new_names[old])
                kwargs[new_names[old]] = kwargs.pop(old)
            initialise(self, *args, **kwargs)

        def attribute(old: str, new: str) -> property:
            def read(self: Any) -> Any:
                _warn(cls, old, new)
                return getattr(self, new)

            return property(read)

        cls.__init__ = __init__
        for old, new in new_names.items():
            setattr(cls, old, attribute(old, new))
        _RENAMED[cls] = new_names
        return cls

    return decorate


def new_names(cls: Any) -> Mapping[str, str]:
    """Maps old names of a class's fields to the current ones."""
    return _RENAMED.get(cls, {})


_RENAMED: dict[Any, Mapping[str, str]] = {}


def _warn(cls: type, old: str, new: str) -> None:
    warnings.warn(f"{cls.__name__}.{old} has been renamed to {new}", DeprecationWarning, stacklevel=3)
