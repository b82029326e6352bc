"""Shared by training and evaluation: sources, shards of hosts, and reading ahead with grain."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np

from densezoo.extras import require

Batch = dict[str, np.ndarray]


class Source(Protocol):
    """Random access to samples: dicts of arrays with an `image` (h, w, c), and a `mask` (h, w) or other targets.

    A source may also have `sizes`, the (h, w) of its samples in order. Without it, evaluation decodes every sample
    once.
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any) -> Mapping[str, Any]: ...


def local_size(batch_size: int, shard: tuple[int, int]) -> int:
    index, count = shard
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}; expected 1 or more.")
    if not 0 <= index < count:
        raise ValueError(f"shard={shard}; expected (index, count) with 0 <= index < count.")
    if batch_size % count:
        raise ValueError(f"batch_size={batch_size} over {count} shards; expected a multiple of {count}.")
    return batch_size // count


@dataclasses.dataclass(frozen=True)
class ReadOptions:
    """Options for reading with grain: threads and prefetched batches."""

    num_threads: int
    prefetch: int

    def source(self, source: Any) -> Any:
        """Wraps a random-access source in a grain dataset."""
        return _grain().MapDataset.source(source)


def read_options(num_threads: int, prefetch: int) -> ReadOptions:
    if num_threads < 0 or prefetch < 1:
        raise ValueError(f"num_threads={num_threads}, prefetch={prefetch}; expected at least 0 and 1.")
    return ReadOptions(num_threads, prefetch)


def read(dataset: Any, options: ReadOptions) -> Iterator[Batch]:
    buffer = max(options.prefetch, options.num_threads)
    iterator = iter(
        dataset.to_iter_dataset(_grain().ReadOptions(num_threads=options.num_threads, prefetch_buffer_size=buffer))
    )
    try:
        yield from iterator
    finally:
        iterator.close()


def _grain() -> Any:
    return require("grain")
