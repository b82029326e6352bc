"""What the example scripts share: the task on digits, the command line, and one message for a user's mistake."""

import contextlib
import math
import os
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

import densezoo as dz
from densezoo import metrics
from densezoo.data import DigitScenes, Source
from densezoo.extras import require
from densezoo.tasks import Segmentation
from densezoo.train import Recipe
from densezoo.types import ModuleDef

T = TypeVar("T")
CLASSES = ["background", *"0123456789"]
NUM_CLASSES = len(CLASSES)
PREPROCESSING = dz.Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3)
TASK = Segmentation(NUM_CLASSES, ignore_index=None)
# Two-sided 95% quantiles of Student's t, by degrees of freedom.
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


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
        head=dz.SegmentationHead(NUM_CLASSES),
    )


def digit_recipe(steps: int, *, size: int = 40, seed: int = 0) -> Recipe:
    """How it is trained."""
    return Recipe(
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


def score(predict: Callable[[Any], Any], val: Source, tolerance: int) -> dict[str, float]:
    """Region and boundary scores over a source, mean over the classes."""
    counts = metrics.Counts.zeros(NUM_CLASSES)
    f_counts = iou_counts = None
    for index in range(len(val)):
        sample = val[index]
        labels = jnp.asarray(sample["mask"][None])
        predictions = jnp.asarray(predict(sample["image"])[None])
        counts += metrics.confusion_counts(predictions, labels, num_classes=NUM_CLASSES)
        here = metrics.boundary_counts(predictions, labels, num_classes=NUM_CLASSES, tolerance=tolerance)
        f_counts = here if f_counts is None else f_counts + here
        band = metrics.boundary_band_counts(predictions, labels, num_classes=NUM_CLASSES, distance=2)
        iou_counts = band if iou_counts is None else iou_counts + band
    assert f_counts is not None and iou_counts is not None
    return {
        "mean_iou": float(metrics.mean_iou(counts)),
        "boundary_iou": float(np.nanmean(np.asarray(metrics.iou(iou_counts)))),
        "boundary_f": float(np.nanmean(np.asarray(metrics.boundary_f_score(f_counts)))),
    }


def summarise(runs: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and half the width of its 95% interval (Student's t) for every score."""
    quantile = STUDENT[len(runs) - 1] / math.sqrt(len(runs))
    return {
        key: (statistics.mean(values), quantile * statistics.stdev(values))
        for key in runs[0]
        for values in [[run[key] for run in runs]]
    }


def keep_compiled() -> None:
    """Keeps what is compiled in the user's cache folder, or in JAX_COMPILATION_CACHE_DIR: later runs start sooner."""
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "densezoo" / "compiled"))


def command_line(main: Callable[[T], None], arguments: type[T]) -> None:
    """Runs a script's `main` with the arguments of the command line."""
    with user_errors():
        main(require("tyro").cli(arguments))


def progress(items: Sequence[T], label: str) -> Iterator[T]:
    """The items, with a progress bar on standard error."""
    console = require("rich.console").Console(stderr=True)
    yield from require("rich.progress").track(items, label, console=console)


def parse_labels(entries: Sequence[str] | None) -> Any:
    """What `ImageMaskFolder(labels=...)` takes, from entries such as "7:0", or "128,64,128:1" for a colour.

    Raises:
        ValueError: an entry of another form; the message names it.
    """
    if entries is None:
        return None
    labels: dict[Any, int] = {}
    for entry in entries:
        value, _, label = entry.partition(":")
        try:
            parts = [int(part) for part in value.split(",")]
            key, number = tuple(parts) if len(parts) > 1 else parts[0], int(label)
        except ValueError:
            raise ValueError(
                f"--labels has {entry!r}; expected NUMBER:CLASS, such as 7:0, or RED,GREEN,BLUE:CLASS, such as"
                " 128,64,128:1"
            ) from None
        if key in labels:
            raise ValueError(f"--labels has {value} twice")
        labels[key] = number
    return labels


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Prints the errors that name their cause (bad values, files, arguments, a missing package) and exits with 1."""
    try:
        yield
    except (ValueError, TypeError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as error:
        print(f"interrupted: {error}", file=sys.stderr)
        sys.exit(130)
