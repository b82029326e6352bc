"""Evaluation batches of whole images from a random-access source."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from densezoo.data import _samples, resizing
from densezoo.data._reading import Batch, ReadOptions, Source, local_size, read, read_options
from densezoo.data.fields import SIZE


def eval_batches(
    source: Source,
    *,
    batch_size: int,
    multiple: int = 32,
    resize: resizing.ResizeTo | None = None,
    ignore_index: int = 255,
    fields: Sequence[str] | None = None,
    shard: tuple[int, int] = (0, 1),
    num_threads: int = 2,
    prefetch: int = 2,
) -> EvalBatches:
    """Returns every sample once, uncropped, in batches with few different shapes.

    Samples are padded at the bottom and right to multiples of `multiple`: images by repeating the last row and column,
    masks with `ignore_index`, other maps with the fill of their kind (see `densezoo.data.fields`). Every batch has an
    additional field `size`, the height and width before padding, int32 (b, 2). Samples of the same padded size share
    batches, so that a jitted function compiles once per size; within a size they keep the source's order. All batches
    have the same number of samples: missing ones have a `size` of 0, images of zeros, masks of `ignore_index` and
    labels of -1.

    Args:
        source: the samples; its `sizes` are used if it has them.
        batch_size: number of samples per batch, over all shards.
        multiple: the padded height and width are multiples of this.
        resize: what each sample is resized to first: (height, width), a `Resize` by its shortest or longest side, or a
            function from (height, width) to such a pair; None keeps its size.
        ignore_index: value of label maps in the padding.
        fields: names of the fields to return; None for all numeric fields.
        shard: (index, count): this host returns the index-th of count equal parts of every batch. All hosts return the
            same number of batches, of the same shapes in the same order.
        num_threads: threads that read ahead; 0 reads on demand.
        prefetch: number of batches to read ahead.

    Returns:
        An iterable of batches that has a length and can be iterated repeatedly.

    Raises:
        ValueError: if an argument is out of its range, the source is empty, or it lacks a field.

    Example:
        >>> from densezoo.data import DigitScenes
        >>> batches = eval_batches(DigitScenes(5, size=(40, 48)), batch_size=2, fields=("image", "mask"))
        >>> len(batches), [batch["mask"].shape for batch in batches]
        (3, [(2, 64, 64), (2, 64, 64), (2, 64, 64)])
        >>> [batch["size"].tolist() for batch in batches][-1]
        [[40, 48], [0, 0]]
    """
    local = local_size(batch_size, shard)
    if multiple < 1:
        raise ValueError(f"multiple={multiple}; expected 1 or more.")
    options = read_options(num_threads, prefetch)
    resizing.check(resize)
    names = _samples.choose_fields(source, fields, "eval_batches")
    sizes, reader = getattr(source, "sizes", None), _samples.Reader(source)
    if sizes is None:
        sizes = [_samples.extent(reader[index]) for index in range(len(reader))]
    groups: dict[tuple[int, int], list[int]] = {}
    for index, size in enumerate(sizes):
        height, width = resizing.target_size(resize, *size)
        groups.setdefault((height + -height % multiple, width + -width % multiple), []).append(index)
    parts = []
    for size, members in groups.items():
        for start in range(0, len(members), batch_size):
            chosen = members[start : start + batch_size]
            parts.append(_Part(size, chosen[0], tuple(chosen[shard[0] * local : (shard[0] + 1) * local])))
    return EvalBatches(reader, names, parts, local, resize, ignore_index, options)


@dataclasses.dataclass(frozen=True)
class _Part:
    """One host's samples of one batch."""

    size: tuple[int, int]
    model: int  # a sample that provides the shapes if the host has no sample
    members: tuple[int, ...]


class EvalBatches:
    """The batches of `eval_batches`."""

    def __init__(
        self,
        source: Source,
        names: Sequence[str],
        parts: Sequence[_Part],
        batch_size: int,
        resize: resizing.ResizeTo | None,
        ignore_index: int,
        options: ReadOptions,
    ):
        """Stores the plan of `eval_batches`."""
        self._source = source
        self._names = names
        self._parts = parts
        self._batch_size = batch_size
        self._resize = resize
        self._ignore_index = ignore_index
        self._options = options

    def __len__(self) -> int:
        """Returns the number of batches."""
        return len(self._parts)

    def __iter__(self) -> Iterator[Batch]:
        """Reads the batches from the start."""
        return read(self._options.source(range(len(self))).map(self._load), self._options)

    def _load(self, number: int) -> Batch:
        part = self._parts[number]
        samples = [self._pad(self._source[index], part.size) for index in part.members]
        if len(samples) < self._batch_size:
            model = samples[0] if samples else self._pad(self._source[part.model], part.size)
            samples += [_samples.empty(model, self._ignore_index)] * (self._batch_size - len(samples))
        return _samples.stack(samples)

    def _pad(self, item: Mapping[str, Any], size: tuple[int, int]) -> Batch:
        chosen = {name: item[name] for name in self._names if name != SIZE}
        sample, (height, width) = _samples.resize(chosen, _samples.extent(item), self._resize)
        margins = ((0, size[0] - height), (0, size[1] - width))
        padded = {name: _samples.pad(name, sample[name], margins, self._ignore_index, "edge") for name in sample}
        return {**padded, SIZE: np.array([height, width], np.int32)}
