"""Code shared by the example scripts: the task on digits, the command line, and error messages."""

import contextlib
import dataclasses
import json
import logging
import math
import os
import shutil
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

import densezoo as dz
from densezoo import metrics
from densezoo.data import DigitScenes, Source, train_batches
from densezoo.extras import require
from densezoo.files import replace
from densezoo.inputs import example_inputs
from densezoo.messages import as_flags
from densezoo.tasks import Segmentation
from densezoo.train import Recipe, TrainState, create_state, make_optimizer, make_train_step, one_cycle
from densezoo.train.sharding import AXES
from densezoo.types import ModuleDef

T = TypeVar("T")
CLASSES = ("background", *(f"digit {digit}" for digit in range(10)))
NUM_CLASSES = len(CLASSES)
PREPROCESSING = dz.Preprocessing(mean=(0.5,) * 3, std=(0.25,) * 3)
TASK = Segmentation(NUM_CLASSES, ignore_index=None, class_names=CLASSES)
OTHER_NAMES = {"criterion": "loss", "directory": "out", "window_pixels": "max_pixels"}
"""Arguments of the library and the options that set them, if their names differ."""
QUICK_NOTE = "--quick: the numbers only show that the script works; ignore them"
# Two-sided 95% quantiles of Student's t, by degrees of freedom.
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}


def digit_scenes(count: int, split: Any, *, size: int = 40, digits: tuple[int, int] = (2, 3), seed: int = 0) -> Source:
    """Scenes that a tiny network can learn within minutes: digits of one size, without occlusion."""
    return DigitScenes(
        count, split=split, size=(size, size), digits=digits, scales=(2.0, 2.0), min_visible=1.0, seed=seed
    )


def tiny_unet(skip: ModuleDef = dz.ConcatSkip, *, quick: bool = False) -> dz.SegmentationModel:
    """A U-Net with half a million parameters, or with `quick` a smaller one that compiles faster."""
    features = (8, 16) if quick else (16, 32, 64, 128)
    return dz.SegmentationModel(
        encoder=dz.PlainEncoder(features=features),
        decoder=dz.UNetDecoder(features=features[-2::-1], skip=skip),
        head=dz.SegmentationHead(NUM_CLASSES),
    )


def count_parameters(model: Any, images: tuple[int, int, int, int] = (1, 64, 64, 3)) -> int:
    """The number of trainable parameters of a model of images of this shape."""
    inputs = example_inputs(model, jax.ShapeDtypeStruct(images, jnp.float32))
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"]))


def digit_recipe(steps: int, *, size: int = 40, seed: int = 0) -> Recipe:
    """The recipe of the training."""
    return Recipe(
        crop_size=size,
        batch_size=32,
        steps=steps,
        learning_rate=5e-3,
        # The first gradients, which separate digits from background, are large and would affect Adam for long.
        clip_norm=0.05,
        flip_horizontal=False,  # a flipped digit is not a digit
        seed=seed,
        evaluate_every=max(1, steps // 3),
    )


def training(model: Any, source: Source, recipe: Recipe) -> Iterator[tuple[int, TrainState]]:
    """Trains a model on scenes; yields the number of steps and the state at the start and after each step."""
    normalize = PREPROCESSING.normalize()
    optimizer = make_optimizer(one_cycle(recipe.learning_rate, recipe.steps), recipe.steps, clip_norm=recipe.clip_norm)
    images = jax.ShapeDtypeStruct((recipe.batch_size, *recipe.crop, 3), jnp.float32)
    state = create_state(model, optimizer, jax.random.key(recipe.seed), images)
    step = make_train_step(TASK.loss, augment=normalize)
    batches = train_batches(source, batch_size=recipe.batch_size, seed=recipe.seed, fields=TASK.fields)(0)
    yield 0, state
    for count in range(1, recipe.steps + 1):
        state, _ = step(state, next(batches))
        yield count, state


def spread(source: Source, count: int) -> list[Any]:
    """Evenly spaced items of a source; all of them if there are at most `count`."""
    count = min(count, len(source))
    return [source[(2 * number + 1) * len(source) // (2 * count)] for number in range(count)]


def score(predict: Callable[[Any], Any], val: Source, tolerance: int) -> dict[str, float]:
    """Region and boundary scores on a source of scenes of one size, averaged over the classes."""
    samples = [val[index] for index in range(len(val))]
    labels = jnp.asarray(np.stack([sample["mask"] for sample in samples]))
    predictions = jnp.asarray(np.stack([predict(sample["image"]) for sample in samples]))
    counts = metrics.confusion_counts(predictions, labels, num_classes=NUM_CLASSES)
    contours = metrics.boundary_counts(predictions, labels, num_classes=NUM_CLASSES, tolerance=tolerance)
    bands = metrics.boundary_band_counts(predictions, labels, num_classes=NUM_CLASSES, distance=2)
    return {
        "mean_iou": float(metrics.mean_iou(counts)),
        "boundary_iou": float(np.nanmean(np.asarray(metrics.iou(bands)))),
        "boundary_f": float(np.nanmean(np.asarray(metrics.boundary_f_score(contours)))),
    }


def summarise(runs: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and half the width of its 95% interval (Student's t) for every score."""
    quantile = STUDENT[len(runs) - 1] / math.sqrt(len(runs))
    return {
        key: (statistics.mean(values), quantile * statistics.stdev(values))
        for key in runs[0]
        for values in [[run[key] for run in runs]]
    }


def differences(runs: list[dict[str, float]], others: list[dict[str, float]]) -> dict[str, tuple[float, float]]:
    """Mean and half the width of its interval for the differences of runs with the same seeds, `runs` - `others`."""
    return summarise([{key: a[key] - b[key] for key in a} for a, b in zip(runs, others, strict=True)])


def number(row: dict[str, Any], key: str, sign: str = "") -> str:
    """A mean and half the width of its interval as text, with the sign "+" for a difference."""
    mean, half = row[key]
    return f"{mean:{sign}.3f} ± {half:.3f}"


def check_runs(arguments: Any) -> None:
    """Raises a ValueError for numbers of seeds, steps, validation scenes or samples that cannot be used."""
    if not 2 <= arguments.seeds <= 10:
        raise ValueError(f"--seeds must be 2 to 10, for an interval; got {arguments.seeds}")
    for name in ("steps", "val", "samples"):
        if getattr(arguments, name, 1) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(arguments, name)}")


Finished = tuple[dict[str, float], dict[str, np.ndarray]]
"""Scores of a training run, and arrays to draw."""


def finished(path: Path, work: Callable[[Path], Finished]) -> Finished:
    """Caches the result of `work` in a file, so that a restarted script does not repeat finished work.

    `work` gets a folder for training checkpoints, which is removed at the end.
    """
    if path.exists():
        with np.load(path) as kept:
            arrays = {name: kept[name] for name in kept.files}
        return json.loads(str(arrays.pop("scores"))), arrays
    checkpoints = path.with_suffix("")
    checkpoints.mkdir(parents=True, exist_ok=True)
    scores, arrays = work(checkpoints)

    def save(temporary: Path) -> None:
        with temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, scores=json.dumps(scores), **arrays)

    replace(path, save)
    shutil.rmtree(checkpoints)
    return scores, arrays


def keep_compiled() -> None:
    """Caches compiled programs in the user's cache folder, or in JAX_COMPILATION_CACHE_DIR, for faster later starts.

    The cache excludes oneDNN. In the exercises' short runs, what this costs per step is about what the cache saves at
    the start (docs/zoo.md has the numbers), so the library's warning of it only appears for a cache of the user.
    """
    if jax.config.jax_compilation_cache_dir is None:  # pyright: ignore[reportAttributeAccessIssue]
        caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(caches / "densezoo" / "compiled"))
        logging.getLogger("densezoo.compiling").setLevel(logging.ERROR)


def command_line(
    main: Callable[[T], None],
    arguments: type[T],
    defaults: Callable[[type[T], Sequence[str]], T | None] = lambda *_: None,
) -> None:
    """Runs a script's `main` with the arguments of the command line. `--help` starts with the script's docstring.

    Args:
        main: is called with the options.
        arguments: the options, a dataclass.
        defaults: given this class and the command line, returns the defaults of the options; None for those of the
            class.
    """
    description = (sys.modules[main.__module__].__doc__ or "").split("\n\n")[0]
    names = {field.name: "--" + field.name.replace("_", "-") for field in dataclasses.fields(arguments)}  # pyright: ignore
    names |= {name: names[flag] for name, flag in OTHER_NAMES.items() if flag in names}
    with user_errors(), as_flags(names):
        cli = partial(require("tyro").cli, arguments, description=description)
        known = defaults(arguments, sys.argv[1:])
        main(cli() if known is None else cli(default=known))


def mesh_of(arguments: Any) -> Mesh | None:
    """The mesh of the options --mesh and --distributed, before the first computation; None for one device.

    Raises:
        ValueError: if --mesh is not a list such as data=2 fsdp=4, or needs other devices than there are.
    """
    axes: dict[str, int] = {}
    for entry in arguments.mesh:
        name, _, count = entry.partition("=")
        if not count.isdecimal() or name in axes or int(count) < 1:
            raise ValueError(f"--mesh has {entry!r}; expected AXIS=DEVICES for each axis, such as data=2 fsdp=4")
        axes[name] = int(count)
    if unknown := [name for name in axes if name not in AXES]:
        raise ValueError(f"--mesh has axes {unknown}; expected some of {', '.join(AXES)}")
    if arguments.distributed:
        if not axes:
            raise ValueError("--distributed needs --mesh, such as --mesh data=8 for 8 devices of all processes")
        jax.distributed.initialize()
    needed = math.prod(axes.values())
    if needed > jax.device_count() or (arguments.distributed and needed != jax.device_count()):
        raise ValueError(f"--mesh {' '.join(arguments.mesh)} has {needed} devices, and there are {jax.device_count()}")
    return jax.make_mesh(tuple(axes.values()), tuple(axes), devices=jax.devices()[:needed]) if axes else None


class Progress(Generic[T]):
    """Iterates over items with a progress bar on standard error, and a second one for the tiles of a large item.

    Where standard error is no terminal, each tenth of a large item is a line.
    """

    def __init__(self, items: Sequence[T], label: str):
        self._items, self._label = items, label
        self._console = require("rich.console").Console(stderr=True)
        self._bars: Any = require("rich.progress").Progress(console=self._console)
        self._tiles: Any = None
        self._tenths = 0

    def __iter__(self) -> Iterator[T]:
        with self._bars:
            yield from self._bars.track(self._items, description=self._label)

    def on_tile(self, done: int, total: int) -> None:
        """Shows how many pixels of an item are computed; for `predict_tiled`."""
        if self._tiles is None:
            self._tiles = self._bars.add_task("Tiles")
        self._bars.update(self._tiles, completed=done, total=total, visible=done < total)
        tenths = 10 * done // total
        if tenths not in (self._tenths, 10) and not self._console.is_terminal:
            print(f"{self._label}: {10 * tenths}% of a large picture", file=sys.stderr, flush=True)
        self._tenths = tenths


def tile_options(arguments: Any, progress: Progress) -> dict[str, Any]:
    """The options of `Predictor.tiled` that scripts have."""
    return {"max_pixels": arguments.max_pixels, "blend": arguments.blend, "on_tile": progress.on_tile}


def tiled(predict: dz.Predictor, picture: Any, max_pixels: int) -> bool:
    """Whether a picture is computed by tiles. One that is resized becomes small enough for one pass."""
    return math.prod(picture.shape[:2]) > max_pixels and not predict.preprocessing.resizes


def parse_labels(entries: Sequence[str] | None) -> Any:
    """Parses entries such as "7:0", or "128,64,128:1" for a colour, for `ImageMaskFolder(labels=...)`.

    Raises:
        ValueError: if an entry is invalid. The message names it.
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
    """Prints errors of the user (bad values, files, arguments, a missing package) without traceback, exits with 1."""
    try:
        yield
    except (ValueError, TypeError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt as error:
        print(f"interrupted: {error}", file=sys.stderr)
        sys.exit(130)
