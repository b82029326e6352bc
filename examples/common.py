"""What the example scripts share: the task on digits, and one clear message for a user's mistake."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any

import densezoo as dz
from densezoo.data import DigitScenes, Source
from densezoo.train import SegmentationRecipe
from densezoo.types import ModuleDef

CLASSES = ["background", *"0123456789"]
MEAN, STD = (0.5,) * 3, (0.25,) * 3


def digit_scenes(count: int, split: Any, *, size: int = 40, digits: tuple[int, int] = (2, 3), seed: int = 0) -> Source:
    """Scenes that a tiny network learns within minutes: digits of one size, none of them hidden."""
    return DigitScenes(
        count, split=split, size=(size, size), digits=digits, scales=(2.0, 2.0), min_visible=1.0, seed=seed
    )


def tiny_unet(skip: ModuleDef = dz.ConcatSkip) -> dz.SegmentationModel:
    """A U-Net of half a million parameters."""
    return dz.SegmentationModel(
        encoder=dz.PlainEncoder(features=(16, 32, 64, 128)),
        decoder=dz.UNetDecoder(features=(64, 32, 16), skip=skip),
        head=dz.SegmentationHead(len(CLASSES)),
    )


def digit_recipe(steps: int, *, size: int = 40, seed: int = 0) -> SegmentationRecipe:
    """How it is trained."""
    return SegmentationRecipe(
        ignore_index=None,
        crop_size=size,
        batch_size=32,
        steps=steps,
        learning_rate=5e-3,
        # The first gradients, which tell digits from background, are large, and Adam would remember them for long.
        clip_norm=0.05,
        flip_horizontal=False,  # a mirrored digit is no digit
        seed=seed,
        evaluate_every=max(1, steps // 3),
    )


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Prints the errors that name their cause (bad values, files, arguments, a full disk) and exits with status 1."""
    try:
        yield
    except (ValueError, TypeError, OSError, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as error:
        print(f"interrupted: {error}", file=sys.stderr)
        sys.exit(130)
