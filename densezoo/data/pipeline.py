"""From a random-access source to batches: shuffled crops for training, whole images for evaluation."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import grain
import numpy as np

from densezoo.data import _fields, _samples

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Random access to samples: dicts of arrays with an `image` (h, w, c), and a `mask` (h, w) or other targets.

    A source may also have `sizes`, the (h, w) of its samples in order; without it, evaluation decodes them to know.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Mapping[str, Any]: ...


def train_batches(
    source: Source,
    *,
    batch_size: int,
    crop_size: int | tuple[int, int] | None = None,
    seed: int = 0,
    ignore_index: int = 255,
    fields: Sequence[str] | None = None,
    shard: tuple[int, int] = (0, 1),
    num_threads: int = 2,
    prefetch: int = 4,
) -> Callable[[int], Iterator[Batch]]:
    """Gives endless training batches that can be entered at any step.

    Every epoch visits every sample once, in a new order; the epochs follow each other without a gap, so that a batch
    may be larger than the source. Batch k depends on the source, seed and k alone: a run that is resumed at step k sees
    what it would have seen.

    Images come as float32 (integers scaled to 0..1 by `to_float`), maps of classes and instances as int32. Samples that
    are smaller than the crop are mirrored at their borders, at a random place of the crop, and the mask is filled with
    `ignore_index`. Boxes are cut off at the crop's border; where less than a quarter is left, the label becomes -1.

    Args:
        source: the samples. With threads it is read by several at once.
        batch_size: samples in a batch, over all shards.
        crop_size: height and width of random crops, or one number for both; None takes whole samples of one size.
        seed: of the order and the crops, 0 to 2**32 - 1.
        ignore_index: for `mask` and `change` where there is no image.
        fields: names of the fields to give; None for all that are numbers.
        shard: (index, count): this host gives the index-th of count equal parts of every batch. The parts together are
            the batch that a single host would give.
        num_threads: threads that read ahead; 0 reads when asked.
        prefetch: batches to read ahead.

    Returns:
        A function from a number of steps to an iterator over the batches from that step on.

    Raises:
        ValueError: if an argument is out of its range, if the source is empty, has no such field, or if its samples
            differ in size while there is no crop_size.

    Example:
        >>> from densezoo.data import DigitScenes
        >>> batches = train_batches(DigitScenes(10, size=(64, 64)), batch_size=4, crop_size=32, num_threads=0)
        >>> first = next(batches(0))
        >>> first["image"].shape, first["mask"].shape
        ((4, 32, 32, 3), (4, 32, 32))
    """
    local = _local_size(batch_size, shard)
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed={seed}; expected 0 to 2**32 - 1.")
    if num_threads < 0 or prefetch < 1:
        raise ValueError(f"num_threads={num_threads}, prefetch={prefetch}; expected at least 0 and 1.")
    window = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    if window is not None and (len(window) != 2 or min(window) < 1):
        raise ValueError(f"crop_size={crop_size}; expected a positive number, a pair (height, width) of them, or None.")
    names = _choose_fields(source, fields)
    sizes = set(getattr(source, "sizes", ()))
    if window is None and len(sizes) > 1:
        raise ValueError(
            f"the source's samples have {len(sizes)} sizes, from {min(sizes)} to {max(sizes)} (height, width), and do "
            "not stack into batches: pass crop_size."
        )

    dataset = grain.MapDataset.source(_samples.Reader(source)).seed(seed).shuffle().repeat()
    dataset = dataset.random_map(_Crop(names, window, ignore_index)).batch(
        local, drop_remainder=True, batch_fn=_samples.stack
    )
    # A host's parts are every count-th of the small batches.
    index, count = shard
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads))

    def batches(start_step: int = 0) -> Iterator[Batch]:
        if start_step < 0:
            raise ValueError(f"start_step={start_step}; expected 0 or more.")
        return _read(dataset[start_step * count + index :: count], options)

    return batches


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    multiple: int = 32,
    ignore_index: int = 255,
    fields: Sequence[str] | None = None,
    shard: tuple[int, int] = (0, 1),
    num_threads: int = 2,
    prefetch: int = 2,
) -> EvalBatches:
    """Gives every sample once, whole, in batches of few shapes.

    Sides are padded at the bottom and right to multiples of `multiple`: images by repeating their last row and column,
    masks with `ignore_index`. Samples of one padded size share batches, so that a jitted function is compiled once a
    size; they come in the source's order. Every batch is full: where samples are missing, there are images of zeros
    with `ignore_index` all over the mask, and labels of -1.

    Args:
        source: the samples; sizes come from its `sizes` if it has them.
        batch_size: samples in a batch, over all shards.
        multiple: what height and width are padded to.
        ignore_index: for `mask` and `change` where there is no image.
        fields: names of the fields to give; None for all that are numbers.
        shard: (index, count): this host gives the index-th of count equal parts of every batch. All hosts give equally
            many batches, of the same shapes in the same order.
        num_threads: threads that read ahead; 0 reads when asked.
        prefetch: batches to read ahead.

    Returns:
        An iterable of batches that has a length and can be gone through again.

    Raises:
        ValueError: if an argument is out of its range, if the source is empty, or has no such field.

    Example:
        >>> from densezoo.data import DigitScenes
        >>> batches = eval_batches(DigitScenes(5, size=(40, 48)), batch_size=2, fields=("image", "mask"))
        >>> len(batches), [batch["mask"].shape for batch in batches]
        (3, [(2, 64, 64), (2, 64, 64), (2, 64, 64)])
    """
    local = _local_size(batch_size, shard)
    if multiple < 1:
        raise ValueError(f"multiple={multiple}; expected 1 or more.")
    if num_threads < 0 or prefetch < 1:
        raise ValueError(f"num_threads={num_threads}, prefetch={prefetch}; expected at least 0 and 1.")
    names = _choose_fields(source, fields)
    reader = _samples.Reader(source)
    sizes = getattr(source, "sizes", None)
    if sizes is None:
        sizes = [_samples.extent(reader[index]) for index in range(len(reader))]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, (height, width) in enumerate(sizes):
        groups.setdefault((height + -height % multiple, width + -width % multiple), []).append(index)
    parts = []
    for size, members in groups.items():
        for start in range(0, len(members), batch_size):
            chosen = members[start : start + batch_size]
            parts.append(_Part(size, chosen[0], tuple(chosen[shard[0] * local : (shard[0] + 1) * local])))
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=max(prefetch, num_threads))
    return EvalBatches(reader, names, parts, local, ignore_index, options)


@dataclasses.dataclass(frozen=True)
class _Part:
    """One host's samples of one batch."""

    size: tuple[int, int]
    model: int  # a sample that shows the shapes where the host has none
    members: tuple[int, ...]


class EvalBatches:
    """The batches of `eval_batches`."""

    def __init__(
        self,
        source: Source,
        names: Sequence[str],
        parts: Sequence[_Part],
        batch_size: int,
        ignore_index: int,
        options: grain.ReadOptions,
    ):
        """Keeps what `eval_batches` has planned."""
        self._source = source
        self._names = names
        self._parts = parts
        self._batch_size = batch_size
        self._ignore_index = ignore_index
        self._options = options

    def __len__(self) -> int:
        """Gives the number of batches."""
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        """Reads the batches, from the first."""
        return _read(grain.MapDataset.source(range(len(self))).map(self._load), self._options)

    def _load(self, number: int) -> Batch:
        part = self._parts[number]
        samples = [self._pad(self._source[index], part.size) for index in part.members]
        if len(samples) < self._batch_size:
            model = samples[0] if samples else self._pad(self._source[part.model], part.size)
            empty = {name: self._emptied(name, array) for name, array in model.items()}
            samples += [empty] * (self._batch_size - len(samples))
        return _samples.stack(samples)

    def _pad(self, item: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Any]:
        height, width = _samples.extent(item)
        margins = [(0, size[0] - height), (0, size[1] - width)]
        return {
            name: _samples.pad(name, _samples.convert(name, item[name]), margins, "edge", self._ignore_index)
            for name in self._names
        }

    def _emptied(self, name: str, array: np.ndarray) -> np.ndarray:
        fill = -1 if name == "labels" else _fields.fill_of(name, self._ignore_index) if _fields.is_map(name) else 0
        return np.full_like(array, fill)


@dataclasses.dataclass(frozen=True)
class _Crop(grain.transforms.RandomMap):
    """Cuts a random window from a sample, and converts what it keeps."""

    names: Sequence[str]
    window: tuple[int, int] | None
    ignore_index: int

    def random_map(self, element: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        if self.window is None:
            return {name: _samples.convert(name, element[name]) for name in self.names}
        height, width = _samples.extent(element)
        # Where the window is larger than the sample, it begins up to the difference before it.
        top, left = (
            int(rng.integers(min(spare, 0), max(spare, 0) + 1))
            for spare in (height - self.window[0], width - self.window[1])
        )
        rows, columns = slice(max(top, 0), top + self.window[0]), slice(max(left, 0), left + self.window[1])
        margins = [
            (max(-top, 0), max(top + self.window[0] - height, 0)),
            (max(-left, 0), max(left + self.window[1] - width, 0)),
        ]
        result = {}
        for name in self.names:
            if _fields.is_image(name) or _fields.is_map(name):
                cut = _samples.convert(name, element[name][rows, columns])
                result[name] = _samples.pad(name, cut, margins, "reflect", self.ignore_index)
            elif name != "boxes":
                result.setdefault(name, _samples.convert(name, element[name]))
        if "boxes" in self.names:
            moved = np.asarray(element["boxes"], np.float32) - np.array([left, top, left, top], np.float32)
            labels = np.asarray(element["labels"], np.int32)
            result["boxes"], labels = _fields.clip_boxes(np, moved, labels, *self.window)
            if "labels" in self.names:
                result["labels"] = labels
        return result


def _local_size(batch_size: int, shard: tuple[int, int]) -> int:
    index, count = shard
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; expected 1 or more.")
    if not 0 <= index < count:
        raise ValueError(f"shard={shard}; expected (index, count) with 0 <= index < count.")
    if batch_size % count:
        raise ValueError(f"batch_size={batch_size} over {count} shards; expected a multiple of {count}.")
    return batch_size // count


def _choose_fields(source: Source, fields: Sequence[str] | None) -> tuple[str, ...]:
    """Reads a sample to see which fields there are."""
    if len(source) == 0:
        raise ValueError(f"{source!r} has no samples.")
    sample = _samples.Reader(source)[0]
    numbers = tuple(name for name in sample if np.asarray(sample[name]).dtype.kind in "biuf")
    if fields is None:
        return numbers
    for name in fields:
        if name not in numbers:
            reason = "is no array of numbers" if name in sample else "is not in the samples"
            raise ValueError(f"fields={tuple(fields)}: {name} {reason}; expected some of {', '.join(numbers)}.")
    return tuple(fields)


def _read(dataset: Any, options: grain.ReadOptions) -> Iterator[Batch]:
    iterator = iter(dataset.to_iter_dataset(options))
    try:
        yield from iterator
    finally:
        iterator.close()
