"""Preprocessing of images, shared by training and prediction."""

import dataclasses
import os
import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from densezoo.messages import option

if TYPE_CHECKING:
    from densezoo.data import Source

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Channels, value range, mean and standard deviation of a model's input images.

    Attributes:
        channels: number of channels.
        mean: mean of each channel, subtracted from images in 0..1. Empty for ImageNet's mean (three channels) or 0.5.
        std: standard deviation of each channel, which divides the result. Empty for ImageNet's deviation (three
            channels) or 0.25.
        value_range: the values in a file that are mapped to 0 and 1, such as (0, 4095) for 12-bit images in 16-bit
            files. None uses 0 and the largest number of the integer type, and does not scale floats.
        shortest: images are resized so that the shortest side has this length; None does not resize.
        longest: length of the longest side; with `shortest`, its upper limit.
        size: (height, width) to which images are resized, instead of `shortest` and `longest`.
        keep_aspect: whether only the side that changes less gets its `size`, and the other one follows.
        multiple: the sides of resized images are rounded to multiples of this.

    Raises:
        ValueError: if the number of channels differs, a deviation is not positive, the range is empty, or a side is
            below 1.

    Example:
        >>> Preprocessing(channels=1).mean, Preprocessing().std
        ((0.5,), (0.229, 0.224, 0.225))
        >>> import numpy as np
        >>> Preprocessing(channels=1, value_range=(0, 4095)).prepare(np.full((1, 1, 1), 4095, np.uint16)).item()
        1.0
    """

    channels: int = 3
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    value_range: tuple[float, float] | None = None
    shortest: int | None = None
    longest: int | None = None
    size: tuple[int, int] | None = None
    keep_aspect: bool = False
    multiple: int = 1

    def __post_init__(self):
        rgb = self.channels == 3
        defaults = {
            "mean": IMAGENET_MEAN if rgb else (0.5,) * self.channels,
            "std": IMAGENET_STD if rgb else (0.25,) * self.channels,
        }
        for name, default in defaults.items():
            object.__setattr__(self, name, tuple(map(float, getattr(self, name))) or default)
        if not len(self.mean) == len(self.std) == self.channels:
            raise ValueError(
                f"{option('mean')} and {option('std')} need {self.channels} numbers, one per channel; got {self.mean}"
                f" and {self.std}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"{option('std')} must be above 0, got {self.std}")
        if self.value_range is not None:
            object.__setattr__(self, "value_range", tuple(map(float, self.value_range)))
            if len(self.value_range) != 2 or self.value_range[0] >= self.value_range[1]:
                raise ValueError(
                    f"{option('value_range')} must be (value for 0, value for 1), in ascending order; got"
                    f" {self.value_range}"
                )

        if self.size is not None:
            object.__setattr__(self, "size", tuple(map(int, self.size)))
            if len(self.size) != 2 or min(self.size) < 1 or self.shortest or self.longest:
                raise ValueError(
                    f"{option('size')} must be (height, width) of 1 or more, without {option('shortest')} and"
                    f" {option('longest')}; got {self.size}"
                )
        if self.multiple < 1:
            raise ValueError(f"{option('multiple')} must be at least 1, got {self.multiple}")
        if self.shortest is not None or self.longest is not None:
            self.size_of(1, 1)  # which refuses sides below 1

    @property
    def resizes(self) -> bool:
        """Whether pictures are resized."""
        return self.shortest is not None or self.longest is not None or self.size is not None

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """The size to which a picture of this height and width is resized; its own if it is not."""
        if not self.resizes:
            return height, width
        if self.size is None:
            from densezoo.data import Resize

            sides: tuple[float, float] = Resize(self.shortest, self.longest)(height, width)
        else:
            scales = self.size[0] / height, self.size[1] / width
            if self.keep_aspect:
                scales = (scales[1],) * 2 if abs(1 - scales[1]) < abs(1 - scales[0]) else (scales[0],) * 2
            sides = scales[0] * height, scales[1] * width
        rounded = [max(1, round(side / self.multiple)) * self.multiple for side in sides]
        return rounded[0], rounded[1]

    def prepare(self, image: np.ndarray, *, warn: bool = True) -> np.ndarray:
        """Converts an image (h, w, channels), as read from a file, to float32 in 0..1, on the host.

        Warns if floats are far outside 0..1 and there is no `value_range`, unless `warn` is False.

        Raises:
            TypeError: if the image is a path.
            ValueError: if the shape or the number of channels is wrong, a pixel is NaN or infinite, or the pixels are
                signed integers of 32 or 64 bits and there is no `value_range`.
        """
        self.check(image)
        if image.dtype.kind == "f" and not np.isfinite(image).all():
            raise ValueError(
                "the image has pixels that are NaN or infinite: replace them, for example by np.nan_to_num"
            )
        if self.value_range is None:
            from densezoo.data import to_float

            if warn and (text := self.doubt(image)):
                warnings.warn(text, stacklevel=2)
            return to_float(image)
        low, high = self.value_range
        return (image.astype(np.float32) - np.float32(low)) * np.float32(1 / (high - low))

    def doubt(self, image: np.ndarray) -> str | None:
        """What `prepare` warns of, if there is anything."""
        if self.value_range is not None or image.dtype.kind != "f" or not image.size:
            return None
        if image.max() <= 2 and image.min() >= -1:
            return None
        return (
            f"the image has floats from {image.min():g} to {image.max():g}, expected 0..1: pass the integers of the"
            " file, or divide by the largest possible value"
        )

    def check(self, image: np.ndarray) -> None:
        """Raises an error if an image is not (h, w, channels), or of a type whose range is unknown."""
        if image.dtype.kind in "UO":
            refuse_path(image.item() if image.ndim == 0 else None)
        if image.ndim != 3 or image.shape[-1] != self.channels:
            raise ValueError(
                f"expected an image of shape (h, w, {self.channels}), got shape {image.shape}: read files with"
                f" dz.data.read_image(path, channels={self.channels})"
            )
        if self.value_range is None and image.dtype.kind == "i" and image.dtype.itemsize > 2:
            # Pixels never fill the range of these types, so that scaled images would be black.
            raise ValueError(
                f"the image has {image.dtype} pixels, whose range is unknown: convert them with astype(np.uint8) or"
                f" astype(np.uint16) or to floats from 0 to 1, or give the preprocessing a {option('value_range')}"
            )

    def normalize(self) -> Callable[[Any, Any], Any]:
        """Returns a function `(key, batch) -> batch` that normalises images on the device."""
        from densezoo.data import transforms

        return transforms.normalize(self.mean, self.std)

    def view(self, source: "Source") -> "Source":
        """Returns a view of a source that checks its images, and scales them if there is a `value_range`.

        Without a `value_range`, images keep their file's dtype. They are converted after cropping, in the batch.
        """
        return _Prepared(source, self)


def centred(channels: int) -> Preprocessing:
    """The preprocessing that maps integers, and floats from 0 to 1, to -1..1."""
    return Preprocessing(channels, mean=(0.5,) * channels, std=(0.5,) * channels)


def refuse_path(picture: Any) -> None:
    """Raises a TypeError if a picture is the path of a file."""
    if isinstance(picture, str | os.PathLike):
        raise TypeError(
            f"expected an image, got the path {os.fspath(picture)!r}: read it with dz.data.read_image(path), or for"
            " tiles open a large TIFF file with dz.data.open_tiff(path)"
        )


class _Prepared:
    """A source whose images are checked and, with a value range, scaled."""

    def __init__(self, source: "Source", preprocessing: Preprocessing):
        self._source, self._preprocessing = source, preprocessing
        if hasattr(source, "sizes"):
            self.sizes = source.sizes  # pyright: ignore[reportAttributeAccessIssue]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: Any) -> Mapping[str, Any]:
        from densezoo.data.fields import Image, kind_of

        sample = dict(self._source[index])
        for name in [name for name in sample if isinstance(kind_of(name), Image)]:
            image = np.asarray(sample[name])
            if self._preprocessing.value_range is None:
                self._preprocessing.check(image)
            else:
                sample[name] = self._preprocessing.prepare(image)
        return sample
