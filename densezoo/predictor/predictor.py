"""The function from an image to the prediction of a task."""

import collections
import contextlib
import functools
import threading
import warnings
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from densezoo import tasks
from densezoo.inference import compile
from densezoo.inspect.matching import Misfit
from densezoo.messages import option
from densezoo.predictor.programs import SIDES, Programs, Shared, is_alone_in_window, window_of
from densezoo.predictor.results import at_size, resized, unit
from densezoo.preprocessing import Preprocessing, refuse_path
from densezoo.tiling.tiling import OnTile, Stages, Tiling
from densezoo.tiling.turns import turns
from densezoo.types import Size

MANY = 8
"""Number of programs for single sizes after which a predictor with `max_programs` warns."""
TILINGS = 4
"""Number of shapes and options for which the programs of tiles are kept."""


class Predictor:
    """A function from an image to its prediction. Created by `load_predictor`, or from a model and its variables.

    A task with several images takes all of them: `predict(before, after)` for `tasks.ChangeDetection`.

    Each image is computed at its own size, exactly like `model.apply`. Each size is compiled once, with its first
    image. For images of many sizes, as in a service, `max_programs=8` limits the number of programs: a few programs are
    then shared between all sizes, with the same results up to rounding.

    Several threads may call a predictor at once. A program is compiled once, while other threads wait for it.

    Args:
        task: the task that the model was trained for, such as `tasks.Segmentation(num_classes=3)`.
        model: the task's inputs -> outputs of the images' size.
        variables: the model's variables.
        preprocessing: preprocessing of the images; None for three channels with ImageNet's mean and deviation.
        pad_to: pads sides to multiples of this many pixels by repeating the last row and column. At most one size per
            multiple is compiled: for sides of up to 1024 pixels and `pad_to=32`, these are 32 per side. Pixels near
            the bottom and right borders then differ slightly from `model.apply`. None computes exactly.
        max_programs: the most compiled programs that are kept; the one that was not used for the longest time is
            dropped. Sizes then share programs, each once for predictions and once for probabilities: windows of 256,
            512 and 1024 pixels a side, and tiles or larger windows for larger images. A size that no program fits gets
            its own, and a warning is issued after the eighth: so it is for all sizes if the model sorts the pixels, for
            example, or if it is a detector with attention or with modules of your own. None keeps a program for each
            size.
        multiple: deprecated name of `pad_to`.

    Attributes:
        task: the given task.
        preprocessing: the given preprocessing.

    Raises:
        ValueError: if `pad_to` or `max_programs` is below 1, or both are given.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> import densezoo as dz
        >>> model = dz.create_model("unet", dz.PlainEncoder((4, 8)), num_classes=3)
        >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> predict = Predictor(dz.tasks.Segmentation(num_classes=3), model, variables)
        >>> picture = np.zeros((23, 37, 3), np.uint8)
        >>> predict(picture).shape, predict.probabilities(picture).shape
        ((23, 37), (23, 37, 3))
    """

    def __init__(
        self,
        task: Any,
        model: nn.Module,
        variables: Any,
        preprocessing: Preprocessing | None = None,
        *,
        pad_to: int | None = None,
        max_programs: int | None = None,
        multiple: int | None = None,
    ):
        if multiple is not None:
            warnings.warn("multiple has been renamed to pad_to", DeprecationWarning, stacklevel=2)
            pad_to = multiple
        if pad_to is not None and pad_to < 1:
            raise ValueError(f"{option('pad_to')} must be a number of pixels, at least 1, or None; got {pad_to}")
        if max_programs is not None and (type(max_programs) is not int or max_programs < 1):
            raise ValueError(
                f"{option('max_programs')} must be an integer of at least 1, or None; got {max_programs!r}"
            )
        if max_programs is not None and pad_to is not None:
            raise ValueError(f"{option('max_programs')} is exact, and {option('pad_to')} is not: pass only one of them")
        self.task = task
        self.preprocessing = Preprocessing() if preprocessing is None else preprocessing
        self._pad_to, self._max_programs = pad_to or 1, max_programs
        self._model, self._variables = model, variables
        method = getattr(task, "method", None)
        infer, normalize = compile(model, variables, method=method), self.preprocessing.normalize()

        def outputs(images, sizes=None):
            named = normalize(None, dict(zip(task.inputs, images, strict=True)))  # which needs no key
            return infer.run(*named.values()) if method is None else infer.run(*named.values(), sizes)

        channels = self.preprocessing.channels

        def finished(finish, images):  # the images of all inputs, as channels of one
            return finish(outputs([images[..., i * channels : (i + 1) * channels] for i in range(len(task.inputs))]))

        self._outputs, self._programs = outputs, Programs(max_programs)
        self._shared: dict[str, Shared] = {}
        self._own: set[Any] = set()  # the first programs for single sizes
        self._tilings: collections.OrderedDict[Any, Tiling] = collections.OrderedDict()
        self._lock = threading.Lock()
        if max_programs is not None and method is None:
            for name in [name for name in ("predict", "probabilities") if hasattr(task, name)]:
                function = functools.partial(finished, getattr(task, name))
                self._shared[name] = Shared(function, len(task.inputs) * channels, self._programs, name)
        self._in_windows = (
            max_programs is not None
            and method is not None
            and is_alone_in_window(model, outputs, len(task.inputs), channels)
        )

    @property
    def compiled(self) -> int:
        """How many programs were compiled."""
        return self._programs.compiled

    def __call__(self, *pictures: np.ndarray) -> Any:
        """The task's prediction, such as an (h, w) int32 mask.

        Args:
            *pictures: an image for each of the task's inputs, usually one: (h, w, channels), integers or floats, as
                `data.read_image` gives it.

        Raises:
            TypeError: if the number of images is wrong, or an image is a path.
            ValueError: if an image's shape, number of channels or type is wrong, or the images differ in size.
        """
        return self._run("predict", pictures)

    def batch(self, pictures: Sequence[np.ndarray], *, size: int = 8) -> list[Any]:
        """The predictions of many images, for a task with one image each.

        As many as `size` images of one shape are computed at once, and the rest one by one, so that there are at most
        two programs for each shape. With `max_programs`, all are computed one by one, because they share programs.

        Args:
            pictures: images as in a call, of any shapes.
            size: the number of images that are computed at once.

        Raises:
            TypeError: if the task needs several images.
            ValueError: if an image's shape or number of channels is wrong, or `size` is below 1.
        """
        self._check_one_image("batch")
        if size < 1:
            raise ValueError(f"{option('size')} must be at least 1, got {size}")
        for picture in pictures:  # before any of them is computed
            self.preprocessing.check(np.asarray(picture))
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for index, picture in enumerate(pictures):
            by_shape.setdefault(np.shape(picture), []).append(index)
        results: list[Any] = [None] * len(pictures)
        for indices in by_shape.values():
            chunks = [indices[start : start + size] for start in range(0, len(indices), size)]
            for chunk in chunks:
                together = size > 1 and len(chunk) == size and self._max_programs is None
                for part in [chunk] if together else [[index] for index in chunk]:
                    found = self._run_all("predict", [(pictures[index],) for index in part])
                    for index, result in zip(part, found, strict=True):
                        results[index] = result
        return results

    def tiled(
        self,
        picture: Any,
        *,
        max_pixels: int = 1 << 21,
        probabilities: bool = False,
        out: Any = None,
        augment: bool | Sequence[tuple[int, bool]] = False,
        blend: bool = False,
        on_tile: OnTile = None,
    ) -> Any:
        """The prediction for a picture that is too large for one pass, by tiles: see `predict_tiled`.

        The programs for the last four combinations of shape and options are kept.

        Args:
            picture: as in a call; also anything with `shape` that returns arrays for slices, such as `np.memmap`.
            max_pixels: limit of the number of pixels that are computed at once.
            probabilities: whether to return probabilities instead of the prediction.
            out: where the result is written, as in `predict_tiled`.
            augment: averages over the turned and mirrored picture, as in `predict_tiled`. For segmentation.
            blend: whether to blend overlapping tiles if the model has operations that read the whole picture.
            on_tile: called after each tile with the number of pixels that are computed, and of all pixels.

        Raises:
            TypeError: if the task needs several images, or is not one of maps, or the picture is a path.
            ValueError: as `predict_tiled`.
            AttributeError: if there are to be probabilities, and the task has none.
        """
        self._check_one_image("tiled")
        if hasattr(self.task, "method"):
            raise TypeError(
                f"{type(self.task).__name__} has no maps of the picture's size, which tiles need: use predict(picture)"
            )
        refuse_path(picture)
        if augment is not False and not isinstance(self.task, tasks.Segmentation):
            raise ValueError(f"{option('augment')} is for segmentation, and the task is {type(self.task).__name__}")
        if probabilities:
            self._check_probabilities()
        shape = np.shape(picture)
        key = (shape, max_pixels, probabilities, turns(augment), blend)
        with self._lock:
            tiling = self._tilings.get(key)
        if tiling is None:
            tiling = Tiling(
                self._model,
                self._variables,
                shape,
                max_pixels=max_pixels,
                reduce=self.task.probabilities if probabilities else self._reduction(),
                augment=key[3],
                blend=blend,
                preprocessing=self.preprocessing,
            )
        with self._lock:
            self._tilings[key] = tiling
            self._tilings.move_to_end(key)
            if len(self._tilings) > TILINGS:
                self._tilings.popitem(last=False)
        return tiling(picture, out=out, on_tile=on_tile)

    def _reduction(self) -> Any:
        """How tiles are reduced to the task's prediction."""
        task = self.task
        if isinstance(task, tasks.Segmentation):
            several = Stages(task.predict, task.probabilities, lambda mean: (mean >= 0.5).astype(np.int32))
            return several if task.multilabel else "classes"
        if isinstance(task, tasks.Normals):  # the mean of unit vectors is shorter
            return Stages(task.predict, task.predict, unit)
        return task.predict

    def warm_up(self, *sizes: Size, probabilities: bool = False) -> None:
        """Compiles the programs for images of some sizes, so that no request waits for it.

        Args:
            *sizes: (height, width) of images. With `max_programs`, any image sizes: those that share programs are
                compiled once. No size compiles all shared programs.
            probabilities: whether to compile them for `probabilities`.

        Raises:
            ValueError: if no size is given and there are no shared programs, or more of them than `max_programs`.

        Example:
            >>> predict = dz.load_predictor("model.safetensors", max_programs=8)  # doctest: +SKIP
            >>> predict.warm_up()  # doctest: +SKIP
        """
        name = "probabilities" if probabilities else "predict"
        if probabilities:
            self._check_probabilities()
        if not sizes:
            self._warm_up_shared(name)
        for height, width in sizes:
            pictures = [np.zeros((height, width, self.preprocessing.channels), np.float32)] * len(self.task.inputs)
            self._run(name, pictures)

    def _warm_up_shared(self, name: str) -> None:
        """Compiles all shared programs, for images as the model sees them."""
        sides = list(SIDES) if self._in_windows else self._shared[name].sides() if name in self._shared else []
        if not sides:
            raise ValueError(
                "there are no shared programs, so that each size has its own: pass the sizes (height, width) to compile"
            )
        if self._max_programs is not None and self._max_programs < len(sides):
            raise ValueError(
                f"there are {len(sides)} shared programs, and {option('max_programs', self._max_programs)} keeps fewer:"
                " pass sizes, or keep more"
            )
        for side in sides:
            image = np.zeros((side, side, self.preprocessing.channels), np.float32)
            self._computed(name, [[image] * len(self.task.inputs)], (side, side))

    def probabilities(self, *pictures: np.ndarray) -> Any:
        """The probabilities of the classes, (h, w, classes) float32, for a task that has them.

        Raises:
            TypeError: if the number of images is wrong.
            ValueError: if an image's shape or number of channels is wrong, or the images differ in size.
            AttributeError: if the task has no probabilities.
        """
        self._check_probabilities()
        return self._run("probabilities", pictures)

    def _check_probabilities(self) -> None:
        if not hasattr(self.task, "probabilities"):
            raise AttributeError(f"{type(self.task).__name__} has no probabilities")

    def _check_one_image(self, name: str) -> None:
        if (count := len(self.task.inputs)) != 1:
            raise TypeError(
                f"{name} is for tasks of one image, and {type(self.task).__name__} takes {count} images"
                f" ({', '.join(self.task.inputs)}): call predict({', '.join(self.task.inputs)}) instead"
            )

    def _run(self, name: str, pictures: Sequence[np.ndarray]) -> Any:
        return self._run_all(name, [pictures])[0]

    def _run_all(self, name: str, samples: Sequence[Sequence[np.ndarray]]) -> list[Any]:
        """The results of one of the task's functions for samples of one size, each with an image for each input."""
        prepared = [self._prepared(pictures) for pictures in samples]
        size, whole = prepared[0][0].shape[:2], np.shape(samples[0][0])[:2]
        padding = [(0, -side % self._pad_to) for side in size]
        padded = [[np.pad(image, (*padding, (0, 0)), mode="edge") for image in images] for images in prepared]
        found, results = self._computed(name, padded, size), []
        for index in range(len(samples)):
            one = jax.tree.map(lambda array, index=index: array[index], found)
            results.append(at_size(one, size, whole, padded[0][0].shape[:2], getattr(self.task, "predicts", None)))
        return results

    def _computed(self, name: str, samples: Sequence[Sequence[np.ndarray]], size: Size) -> Any:
        """The results for a batch of samples, on the host."""
        finish = getattr(self.task, name)
        if name in self._shared and len(samples) == 1:
            with contextlib.suppress(Misfit):
                return self._shared[name](np.concatenate(samples[0], -1))[None]
        window = window_of(size) if self._in_windows else size
        padding = [(0, 0), *((0, whole - side) for side, whole in zip(size, window, strict=True)), (0, 0)]
        images = [np.pad(np.stack(inputs), padding) for inputs in zip(*samples, strict=True)]
        sizes = np.array([size] * len(samples), np.int32)
        with self._lock:
            new = len(self._own) < MANY and (name, images[0].shape) not in self._own
            if new:
                self._own.add((name, images[0].shape))
            warns = self._max_programs is not None and not self._in_windows and new and len(self._own) == MANY
        found = self._programs(
            (name, images[0].shape), lambda images, sizes: finish(self._outputs(images, sizes)), images, sizes
        )
        if self._in_windows:
            found = jax.tree.map(lambda x: x[:, : size[0], : size[1]] if x.shape[1:3] == window else x, found)
        if warns:
            warnings.warn(
                f"{type(self._model).__name__} needs a program for each size of image, and {MANY} were compiled:"
                " resize or pad the images to a few sizes",
                stacklevel=4,
            )
        return jax.tree.map(np.asarray, found)

    def _prepared(self, pictures: Sequence[np.ndarray]) -> list[np.ndarray]:
        """The images of a sample as float32 in 0..1, at the model's size."""
        if len(pictures) != len(self.task.inputs):
            raise TypeError(
                f"{type(self.task).__name__} needs {len(self.task.inputs)} images ({', '.join(self.task.inputs)}); got"
                f" {len(pictures)}"
            )
        prepared = [self.preprocessing.prepare(np.asarray(picture)) for picture in pictures]
        whole, *others = (image.shape[:2] for image in prepared)
        if others and set(others) != {whole}:
            raise ValueError(f"the images differ in size (height, width): {', '.join(map(str, [whole, *others]))}")
        size = self.preprocessing.size_of(*whole)
        return [resized(image, size) for image in prepared] if size != whole else prepared
