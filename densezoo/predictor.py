"""Prediction: from an image file's pixels to the prediction of a task."""

import dataclasses
import json
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from densezoo import tasks, weights
from densezoo.compiling import Jitted
from densezoo.inference import compile
from densezoo.messages import option
from densezoo.preprocessing import Preprocessing
from densezoo.train.recipe import MODEL_FILE
from densezoo.types import Detections


class Predictor:
    """A function from an image to its prediction. Created by `load_predictor`, or from a model and its variables.

    A task with several images takes all of them: `predict(before, after)` for `tasks.ChangeDetection`.

    Each image is computed at its own size, exactly like `model.apply`. Each size is compiled once, with its first
    image. For images of many sizes, `pad_to` limits the number of compilations, at the cost of an approximation.

    Args:
        task: the task that the model was trained for, such as `tasks.Segmentation(num_classes=3)`.
        model: the task's inputs -> outputs of the images' size.
        variables: the model's variables.
        preprocessing: preprocessing of the images; None for three channels with ImageNet's mean and deviation.
        pad_to: pads sides to multiples of this many pixels by repeating the last row and column. At most one size per
            multiple is compiled: for sides of up to 1024 pixels and `pad_to=32`, these are 32 per side. Pixels near
            the bottom and right borders then differ slightly from `model.apply`. None computes exactly.
        multiple: deprecated name of `pad_to`.

    Attributes:
        task: the given task.
        preprocessing: the given preprocessing.

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
        multiple: int | None = None,
    ):
        if multiple is not None:
            warnings.warn("multiple has been renamed to pad_to", DeprecationWarning, stacklevel=2)
            pad_to = multiple
        if pad_to is not None and pad_to < 1:
            raise ValueError(f"{option('pad_to')} must be a number of pixels, at least 1, or None; got {pad_to}")
        self.task = task
        self.preprocessing = Preprocessing() if preprocessing is None else preprocessing
        self._pad_to = pad_to or 1
        method = getattr(task, "method", None)
        infer, normalize = compile(model, variables, method=method), self.preprocessing.normalize()

        def outputs(images, sizes):
            named = normalize(jax.random.key(0), dict(zip(task.inputs, images, strict=True)))
            return infer(*named.values()) if method is None else infer(*named.values(), sizes)

        self._predict = Jitted(lambda images, sizes: task.predict(outputs(images, sizes)))
        self._probabilities = Jitted(lambda images, sizes: task.probabilities(outputs(images, sizes)))

    def __call__(self, *pictures: np.ndarray) -> Any:
        """The task's prediction, such as an (h, w) int32 mask.

        Args:
            *pictures: an image for each of the task's inputs, usually one: (h, w, channels), integers or floats, as
                `data.read_image` gives it.

        Raises:
            TypeError: if the number of images is wrong.
            ValueError: if an image's shape or number of channels is wrong, or the images differ in size.
        """
        return self._run(self._predict, pictures)

    def probabilities(self, *pictures: np.ndarray) -> Any:
        """The probabilities of the classes, (h, w, classes) float32, for a task that has them.

        Raises:
            TypeError: if the number of images is wrong.
            ValueError: if an image's shape or number of channels is wrong, or the images differ in size.
            AttributeError: if the task has no probabilities.
        """
        if not hasattr(self.task, "probabilities"):
            raise AttributeError(f"{type(self.task).__name__} has no probabilities")
        return self._run(self._probabilities, pictures)

    def _run(self, function: Any, pictures: Sequence[np.ndarray]) -> Any:
        if len(pictures) != len(self.task.inputs):
            raise TypeError(
                f"{type(self.task).__name__} needs {len(self.task.inputs)} images ({', '.join(self.task.inputs)}); got"
                f" {len(pictures)}"
            )
        prepared = [self.preprocessing.prepare(np.asarray(picture)) for picture in pictures]
        whole, *others = (image.shape[:2] for image in prepared)
        if others and set(others) != {whole}:
            raise ValueError(f"the images differ in size (height, width): {', '.join(map(str, [whole, *others]))}")
        height, width = self.preprocessing.size_of(*whole)
        if (height, width) != whole:
            prepared = [_resized(image, (height, width)) for image in prepared]
        padding = [(0, -side % self._pad_to) for side in (height, width)]
        padded = [np.pad(image, (*padding, (0, 0)), mode="edge")[None] for image in prepared]

        def of_picture(x: Any) -> np.ndarray:
            array = np.asarray(x)[0]
            if array.shape[:2] != padded[0].shape[1:3]:
                return array
            array = array[:height, :width]
            return array if (height, width) == whole else _resized(array, whole, getattr(self.task, "predicts", None))

        sizes = np.array([[height, width]], np.int32)
        found = jax.tree.map(of_picture, function(padded, sizes))
        zoom = np.array([whole[1] / width, whole[0] / height] * 2, np.float32)

        def zoomed(part: Any) -> Any:  # boxes end at the border of the picture that the model saw
            return dataclasses.replace(part, boxes=part.boxes * zoom) if isinstance(part, Detections) else part

        return jax.tree.map(zoomed, found, is_leaf=lambda part: isinstance(part, Detections))


def _resized(array: np.ndarray, size: tuple[int, int], field: str | None = None) -> np.ndarray:
    """An array of another size, by the kind of a field, or as a picture or map.

    Floats of the latter are interpolated linearly, and whole numbers are those of the nearest pixel.
    """
    from densezoo.data import fields

    kind: Any = fields.Map(linear=array.dtype.kind == "f") if field is None else fields.kind_of(field)
    return kind.resize(array, size)


def load_predictor(
    path: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    pad_to: int | None = None,
    multiple: int | None = None,
) -> Predictor:
    """Loads a predictor from a model file or from the folder of a training run.

    Args:
        path: a file that `dz.save` or `train` wrote with preprocessing and a task, or for segmentation with names of
            classes instead; or the folder of a run.
        model: a model to use instead of the one that the file describes, for your own modules.
        pad_to: pads sides to multiples of this many pixels, which compiles fewer sizes but is an approximation. None
            computes exactly. See `Predictor`.
        multiple: deprecated name of `pad_to`.

    Returns:
        A function from an image (h, w, channels), as read from a file, to the task's prediction. A task with several
        images takes all of them.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, or has no task or preprocessing.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp, numpy as np
        >>> import densezoo as dz
        >>> model = dz.create_model("unet", dz.PlainEncoder((4, 8)), num_classes=2)
        >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 1)))
        >>> path = tempfile.mkdtemp() + "/model.safetensors"
        >>> task = dz.tasks.Segmentation(num_classes=2, class_names=("sky", "ground"))
        >>> dz.save(path, model, variables, task=task, preprocessing=dz.Preprocessing(channels=1))
        >>> predict = load_predictor(path)
        >>> predict(np.zeros((20, 30, 1), np.uint8)).shape, predict.task.class_names
        ((20, 30), ('sky', 'ground'))
    """
    if multiple is not None:
        warnings.warn("multiple has been renamed to pad_to", DeprecationWarning, stacklevel=2)
        pad_to = multiple
    file = Path(path)
    if file.is_dir():
        if not (file / MODEL_FILE).is_file():
            return _of_old_run(file, pad_to)
        file = file / MODEL_FILE
    model, variables, metadata = weights.load_with_metadata(file, model=model)
    classes = metadata.get("classes")
    if "task" not in metadata and classes and getattr(getattr(model, "head", None), "num_classes", 0) == len(classes):
        metadata["task"] = tasks.describe(tasks.Segmentation(len(classes), class_names=tuple(classes)))
    if missing := [name for name in ("task", "preprocessing") if name not in metadata]:
        raise ValueError(
            f"{file} has no {' and no '.join(missing)}, which prediction needs: write it again with"
            " dz.save(path, model, variables, task=..., preprocessing=...), or use dz.load and Predictor(...)"
        )
    try:
        task = tasks.from_description(metadata["task"])
        preprocessing = Preprocessing(**metadata["preprocessing"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} describes an invalid task or preprocessing: {error}") from error
    return Predictor(task, model, variables, preprocessing, pad_to=pad_to)


def _of_old_run(folder: Path, pad_to: int | None) -> Predictor:
    """Loads a predictor from a run of an older densezoo, which stored the model's names in model.json."""
    from densezoo.train import load_variables
    from densezoo.zoo import create_model

    path = folder / "model.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {MODEL_FILE}: expected the --out folder of a training")
    try:
        old = json.loads(path.read_text())
        classes = old["num_classes"]
        fields = {field: old[field] for field in ("upsample", "skip") if old.get(field)}
        model = create_model(old["model"], old["encoder"], classes, **fields)
        preprocessing = Preprocessing(old["channels"], old["mean"], old["std"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not the configuration of a model: {error!r}") from error
    task = tasks.Segmentation(num_classes=classes, ignore_index=None)  # prediction does not need it
    return Predictor(task, model, load_variables(folder, "best"), preprocessing, pad_to=pad_to)
