"""Reads class numbers from mask files."""

from __future__ import annotations

import collections
import dataclasses
import pathlib
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from densezoo.data import _decode
from densezoo.data._tiff_windows import open_tiff
from densezoo.messages import option, shortened

Colour = tuple[int, int, int]
Labels = Mapping[int, int] | Mapping[Colour, int]
SURVEYED = 1 << 24
"""Pixels that are read at once where a whole mask is checked."""


@dataclasses.dataclass(frozen=True)
class MaskReader:
    """Reads masks, and finds values that are not classes.

    Attributes:
        num_classes: masks may contain 0..num_classes-1; None for any number.
        ignore_index: the value of unlabelled pixels, or None.
        labels: mapping from values or colours in the files to classes; None if the values are the classes.
        multilabel: whether masks have a channel of 0 and 1 for every class.
    """

    num_classes: int | None
    ignore_index: int | None
    labels: Labels | None
    multilabel: bool

    def __post_init__(self):
        if self.labels is None:
            return
        if not self.labels or len({isinstance(value, tuple) for value in self.labels}) > 1:
            raise ValueError(
                f"{option('labels', dict(self.labels))}; expected file values, or colours (red, green, blue), not both."
            )
        if self.coloured and self.multilabel:
            raise ValueError(
                f"{option('labels')} of colours and {option('multilabel')} exclude each other; expected one of the two."
            )
        for value, label in self.labels.items():
            if isinstance(value, tuple) and (len(value) != 3 or not all(0 <= part <= 255 for part in value)):
                raise ValueError(f"{option('labels')} has the colour {value}; expected (red, green, blue) of 0..255.")
            if label not in self._allowed and not (self._count is None and label >= 0):
                raise ValueError(f"{option('labels')} has {value}: {label}; expected a class: {self._expectation}.")

    def read(self, path: pathlib.Path) -> tuple[np.ndarray, dict[int, int]]:
        """Reads a mask.

        Args:
            path: the file.

        Returns:
            The classes as int32, (h, w), or (h, w, classes) for several labels per pixel; and the number of pixels of
            each value that is not a class.

        Raises:
            ValueError: if the file is damaged, or its channels do not fit.
        """
        numbers = _decode.decode_colours(path) if self.coloured else _decode.decode_mask(path, several=self.multilabel)
        if self.multilabel and self.num_classes not in (None, numbers.shape[-1]):
            raise ValueError(
                f"{path}: a mask of {numbers.shape[-1]} channels; expected {self.num_classes}, one for each class."
            )
        return self.classes(numbers)

    def classes(self, numbers: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
        """The classes of numbers in a mask, and the number of pixels of each value that is not a class."""
        if self.labels is not None:
            return self._mapped(numbers)
        if self._count is None:
            return numbers, {}
        wrong = (numbers < 0) | (numbers >= self._count)
        if self.ignore_index is not None:
            wrong &= numbers != self.ignore_index
        return numbers, _counts(numbers[wrong])

    def _mapped(self, numbers: np.ndarray) -> tuple[np.ndarray, dict[int, int]]:
        assert self.labels is not None
        table = {_code(value): label for value, label in self.labels.items()}
        if self.ignore_index is not None and not self.coloured:
            table.setdefault(self.ignore_index, self.ignore_index)
        values = np.array(sorted(table), np.int32)
        places = np.minimum(np.searchsorted(values, numbers), len(values) - 1)
        classes = np.array([table[value] for value in values.tolist()], np.int32)[places]
        return classes, _counts(numbers[values[places] != numbers])

    def describe(self, strangers: Mapping[int, int]) -> str:
        """Lists values that are not classes, with their numbers of pixels."""
        shown = [f"{self._shown(value)} ({count} pixels)" for value, count in sorted(strangers.items())]
        where = "outside the classes" if self.labels is None else f"not in {option('labels')}"
        what = f"{'colour' if self.coloured else 'mask value'}{'s' if len(shown) > 1 else ''}"
        return f"{what} {shortened(shown, ', ', 10)} {where}"

    def advise(self, strangers: Iterable[int]) -> str:
        """Suggests what to do about values that are not classes."""
        values, labels, ignored = set(strangers), option("labels"), option("ignore_index")
        if self.coloured:
            return (
                f"Add the colours to {labels}, with {ignored} for those without a class. Colours between those of the "
                "classes come from saving with loss, or with smoothed borders."
            )
        if self.labels is not None:
            return f"Add the values to {labels}, with {ignored} for those without a class."
        allowed = f"Masks may hold {self._expectation}"
        if values == {255} and self.ignore_index != 255:
            ignored, mapping = option("ignore_index", 255), option("labels", {0: 0, 255: 1})
            return (
                f"{allowed}: if 255 marks unlabelled pixels, pass {ignored}; if it is a class, as in masks of 0 and"
                f" 255, pass {mapping}."
            )
        if len(values) == 1 and self.ignore_index is None:
            value = next(iter(values))
            return (
                f"{allowed}: if {value} marks unlabelled pixels, pass {option('ignore_index', value)}; else"
                f" {option('num_classes')} is wrong."
            )
        mapping = option("labels", "{number: class}", typed="NUMBER:CLASS ...")
        return f"{allowed}: {option('num_classes')} is too small, or the masks hold other numbers: pass {mapping}."

    @property
    def coloured(self) -> bool:
        """Whether files have colours instead of numbers."""
        return self.labels is not None and isinstance(next(iter(self.labels), None), tuple)

    @property
    def _count(self) -> int | None:
        """How many numbers a mask may contain, starting at 0."""
        return 2 if self.multilabel else self.num_classes

    @property
    def _allowed(self) -> set[int | None]:
        return {*range(self._count or 0), self.ignore_index}

    @property
    def _expectation(self) -> str:
        ignored = "" if self.ignore_index is None else f" and {option('ignore_index', self.ignore_index)}"
        return f"0..{(self._count or 0) - 1}{ignored}"

    def _shown(self, value: int) -> str:
        return str((value >> 16, value >> 8 & 255, value & 255) if self.coloured else value)


def count_classes(
    num_classes: int | None, class_names: Sequence[str], labels: Labels | None, ignore_index: int | None
) -> int | None:
    """Returns the number of classes, derived from their names or from the labels if it is not given."""
    if class_names:
        repeated = isinstance(class_names, str) or len({*class_names}) < len(class_names)
        if repeated or num_classes not in (None, len(class_names)):
            raise ValueError(
                f"{option('class_names', class_names)}, {option('num_classes', num_classes)}; expected a name of its"
                " own for each class."
            )
        return len(class_names)
    if num_classes is None and labels:
        return max((label for label in labels.values() if label != ignore_index), default=-1) + 1 or None
    return num_classes


def _code(value: int | Colour) -> int:
    return value[0] << 16 | value[1] << 8 | value[2] if isinstance(value, tuple) else int(value)


def _counts(values: np.ndarray) -> dict[int, int]:
    if not values.size:
        return {}
    found, counts = np.unique(values, return_counts=True)
    return dict(zip(found.tolist(), counts.tolist(), strict=True))


class MaskWindows:
    """The classes of a TIFF mask, (height, width), as an array that reads what is sliced.

    Raises:
        ValueError: if the file cannot be read by windows; when sliced, if there are values that are not classes.
    """

    def __init__(self, path: pathlib.Path, reader: MaskReader):
        self._reader, self._coloured = reader, reader.coloured
        self._windows = open_tiff(path, channels=3 if self._coloured else None, indices=not self._coloured)
        if reader.multilabel or (not self._coloured and self._windows.shape[2] != 1):
            self.close()
            raise ValueError(f"{path}: expected one channel of class numbers")
        self.shape = self._windows.shape[:2]

    def __getitem__(self, index: tuple[slice, slice]) -> np.ndarray:
        classes, strangers = self._reader.classes(self._numbers(index))
        if strangers:
            raise ValueError(
                f"{self._windows.path}: {self._reader.describe(strangers)}. {self._reader.advise(strangers)}"
            )
        return classes

    def _numbers(self, index: tuple[slice, slice]) -> np.ndarray:
        """The numbers of a window as they are in the file."""
        pixels, path = self._windows[index], self._windows.path
        return _decode.colour_numbers(pixels, path) if self._coloured else _decode.whole_numbers(pixels[..., 0], path)

    def survey(self) -> tuple[dict[int, int], set[int]]:
        """The number of pixels of each value that is not a class, and the classes that occur."""
        strangers: collections.Counter[int] = collections.Counter()
        labels: set[int] = set()
        rows = max(1, SURVEYED // self.shape[1])
        for row in range(0, self.shape[0], rows):
            classes, found = self._reader.classes(self._numbers((slice(row, row + rows), slice(None))))
            strangers.update(found)
            labels.update(np.unique(classes).tolist())
        return strangers, labels

    def close(self) -> None:
        """Closes the file."""
        self._windows.close()
