"""Training batches of random crops from a random-access source."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from densezoo.data import _samples, resizing
from densezoo.data._reading import Batch, Source, local_size, read, read_options
from densezoo.data.fields import SIZE
from densezoo.messages import option


def train_batches(
    source: Source,
    *,
    batch_size: int,
    crop_size: int | tuple[int, int] | None = None,
    seed: int = 0,
    resize: resizing.ResizeTo | None = None,
    ignore_index: int = 255,
    fields: Sequence[str] | None = None,
    shard: tuple[int, int] = (0, 1),
    num_threads: int = 2,
    prefetch: int = 4,
) -> Callable[[int], Iterator[Batch]]:
    """Returns an endless stream of training batches that can start at any step.

    Every epoch visits every sample once, in a new order. Epochs follow each other without a gap, so a batch may be
    larger than the source. Batch k only depends on the source, the seed and k, so a run that resumes at step k gets the
    same batches as an uninterrupted run.

    A field is processed according to its kind, which `densezoo.data.fields` determines from its name. Images are
    converted to float32 (integers are scaled to 0..1 by `to_float`), class and instance maps to int32. Samples smaller
    than the crop are placed randomly in it and reflected at their borders, and the mask is filled with `ignore_index`.
    Boxes are clipped to the crop; if less than a quarter is left, the label becomes -1.

    Args:
        source: the samples. Several threads may read it concurrently.
        batch_size: number of samples per batch, over all shards.
        crop_size: height and width of random crops, or one number for both; None takes whole samples of one size.
        resize: what each sample is resized to before it is cropped: (height, width), a `Resize` by its shortest or
            longest side, a `ScaleJitter`, or a function from (height, width) to such a pair; None keeps its size.
        seed: seed of the order and the crops, 0 to 2**32 - 1.
        ignore_index: value of label maps in the padding.
        fields: names of the fields to return; None for all numeric fields. If "size" is among them, batches contain the
            height and width without padding, and samples smaller than the crop are padded at the bottom and right, as
            in `eval_batches`.
        shard: (index, count): this host returns the index-th of count equal parts of every batch. Together, the parts
            are the batch that a single host would return.
        num_threads: threads that read ahead; 0 reads on demand.
        prefetch: number of batches to read ahead.

    Returns:
        A function from a number of steps to an iterator over the batches from that step on.

    Raises:
        ValueError: if an argument is out of its range, the source is empty or lacks a field, or its samples differ in
            size and crop_size is None.

    Example:
        >>> from densezoo.data import DigitScenes
        >>> batches = train_batches(DigitScenes(10, size=(64, 64)), batch_size=4, crop_size=32, num_threads=0)
        >>> first = next(batches(0))
        >>> first["image"].shape, first["mask"].shape
        ((4, 32, 32, 3), (4, 32, 32))
    """
    local = local_size(batch_size, shard)
    if not 0 <= seed < 2**32:
        raise ValueError(f"{option('seed', seed)}; expected 0 to 2**32 - 1.")
    options = read_options(num_threads, prefetch)
    resizing.check(resize)
    window = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    if window is not None and (len(window) != 2 or min(window) < 1):
        raise ValueError(f"crop_size={crop_size}; expected a positive number, a pair (height, width) of them, or None.")
    names = _samples.choose_fields(source, fields, "train_batches")
    sizes = {resizing.target_size(resize, *size) for size in getattr(source, "sizes", ())}
    if window is None and (len(sizes) > 1 or isinstance(resize, resizing.ScaleJitter)):
        raise ValueError(
            f"the source's samples have {len(sizes)} sizes, from {min(sizes)} to {max(sizes)} (height, width), and do "
            "not stack into batches: pass crop_size."
        )

    dataset = options.source(_samples.Reader(source)).seed(seed).shuffle().repeat()
    dataset = dataset.random_map(_Crop(names, window, resize, ignore_index)).batch(
        local, drop_remainder=True, batch_fn=_samples.stack
    )
    # Each host takes every count-th of the small batches.
    index, count = shard

    def batches(start_step: int = 0) -> Iterator[Batch]:
        if start_step < 0:
            raise ValueError(f"start_step={start_step}; expected 0 or more.")
        return read(dataset[start_step * count + index :: count], options)

    return batches


@dataclasses.dataclass(frozen=True)
class _Crop:
    """Resizes a sample, cuts a random window from it, and converts the selected fields."""

    names: Sequence[str]
    window: tuple[int, int] | None
    resize: resizing.ResizeTo | None
    ignore_index: int

    def __call__(self, element: Mapping[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        chosen = _samples.with_partners(element, self.names)
        needed = self.window is not None or self.resize is not None or SIZE in self.names
        size = _samples.extent(element) if needed else (0, 0)
        resize = self.resize.draw(*size, rng) if isinstance(self.resize, resizing.ScaleJitter) else self.resize
        sample, size = _samples.resize(chosen, size, resize)
        if self.window is not None:
            # If the window is larger than the sample, it starts up to the difference before it.
            spare = [size[axis] - self.window[axis] for axis in (0, 1)]
            corner = [int(rng.integers(min(pixels, 0), max(pixels, 0) + 1)) for pixels in spare]
            mode = "reflect"
            if SIZE in self.names:
                corner, mode = [max(place, 0) for place in corner], "edge"
            sample = _samples.window(sample, corner, size, self.window, self.ignore_index, mode)
            size = min(size[0], self.window[0]), min(size[1], self.window[1])
        batched = {name: _samples.convert(name, value) for name, value in sample.items()}
        return {name: np.array(size, np.int32) if name == SIZE else batched[name] for name in self.names}
