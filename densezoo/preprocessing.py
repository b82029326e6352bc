"""What happens to a picture before a model sees it, in training and in prediction alike."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from densezoo.data import Source

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Channels, value range, mean and standard deviation of the images that a model is made for.

    Attributes:
        channels: of the images.
        mean: per channel, subtracted from images in 0..1; empty for ImageNet's (three channels) or 0.5.
        std: per channel, by which they are then divided; empty for ImageNet's (three channels) or 0.25.
        value_range: the values of a file that become 0 and 1, such as (0, 4095) for 12-bit pictures in 16-bit files.
            None takes 0 and the largest number of the integer type, and floats as they are.
        shortest: pictures are resized to this length of their shortest side; None leaves them as they are.
        longest: length of the longest side; with `shortest`, what it may reach at most.

    Raises:
        ValueError: other numbers of channels, a deviation that is not positive, an empty range, or a side below 1.

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
                f"mean and std need {self.channels} numbers, one a channel; got {self.mean} and {self.std}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"std is above 0, got {self.std}")
        if self.value_range is not None:
            object.__setattr__(self, "value_range", tuple(map(float, self.value_range)))
            if len(self.value_range) != 2 or self.value_range[0] >= self.value_range[1]:
                raise ValueError(f"value_range is (value of 0, value of 1), got {self.value_range}")

        if self.shortest is not None or self.longest is not None:
            self.size_of(1, 1)  # which refuses sides below 1

    @property
    def resizes(self) -> bool:
        """Whether pictures are resized."""
        return self.shortest is not None or self.longest is not None

    def size_of(self, height: int, width: int) -> tuple[int, int]:
        """The size to which a picture of this height and width is resized; its own if it is not."""
        from densezoo.data import Resize

        return Resize(self.shortest, self.longest)(height, width) if self.resizes else (height, width)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """A picture (h, w, channels) as a file holds it, as float32 in 0..1; on the host.

        Raises:
            ValueError: another shape or number of channels.
        """
        self.check(image)
        if self.value_range is None:
            from densezoo.data import to_float

            return to_float(image)
        low, high = self.value_range
        return (image.astype(np.float32) - np.float32(low)) * np.float32(1 / (high - low))

    def check(self, image: np.ndarray) -> None:
        """Raises a ValueError if a picture is not (h, w, channels)."""
        if image.ndim != 3 or image.shape[-1] != self.channels:
            raise ValueError(f"expected a picture of shape (h, w, {self.channels}), got shape {image.shape}")

    def normalize(self) -> Callable[[Any, Any], Any]:
        """`(key, batch) -> batch` with normalised images, on the device."""
        from densezoo.data import transforms

        return transforms.normalize(self.mean, self.std)

    def view(self, source: "Source") -> "Source":
        """The samples of a source, their images checked, and scaled if there is a `value_range`.

        Without one they stay in the type of their file: batches are converted after they were cropped.
        """
        return _Prepared(source, self)


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
