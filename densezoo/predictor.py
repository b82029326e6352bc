"""From a picture as a file holds it to a task's prediction."""

import json
import os
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from densezoo import tasks, weights
from densezoo.compiling import Jitted
from densezoo.inference import compile
from densezoo.preprocessing import Preprocessing
from densezoo.train.recipe import MODEL_FILE


class Predictor:
    """A function from a picture to its prediction; made by `load_predictor`, or from a model and its variables.

    Pictures are padded at the bottom and right to a multiple of `multiple`, as in evaluation, so that few sizes need
    to be compiled.

    Args:
        task: what the model was trained for, such as `tasks.Segmentation(num_classes=3)`.
        model: images -> outputs of the images' size.
        variables: of the model.
        preprocessing: of the pictures; None for three channels with ImageNet's numbers.
        multiple: sides are padded to multiples of this many pixels.

    Attributes:
        task: as given.
        preprocessing: as given.

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
        multiple: int = 32,
    ):
        self.task = task
        self.preprocessing = Preprocessing() if preprocessing is None else preprocessing
        self._multiple = multiple
        method = getattr(task, "method", None)
        infer, normalize = compile(model, variables, method=method), self.preprocessing.normalize()

        def outputs(images, sizes):
            images = normalize(jax.random.key(0), {"image": images})["image"]
            return infer(images) if method is None else infer(images, sizes)

        self._predict = Jitted(lambda images, sizes: task.predict(outputs(images, sizes)))
        self._probabilities = Jitted(lambda images, sizes: task.probabilities(outputs(images, sizes)))

    def __call__(self, picture: np.ndarray) -> Any:
        """The task's prediction, such as an (h, w) int32 mask.

        Args:
            picture: (h, w, channels), integers or floats, as `data.read_image` gives it.

        Raises:
            ValueError: a picture of another shape or number of channels.
        """
        return self._run(self._predict, picture)

    def probabilities(self, picture: np.ndarray) -> Any:
        """The probabilities of the classes, (h, w, classes) float32, for a task that has them.

        Raises:
            ValueError: a picture of another shape or number of channels.
            AttributeError: the task has no probabilities.
        """
        if not hasattr(self.task, "probabilities"):
            raise AttributeError(f"{type(self.task).__name__} has no probabilities")
        return self._run(self._probabilities, picture)

    def _run(self, function: Any, picture: np.ndarray) -> Any:
        prepared = self.preprocessing.prepare(np.asarray(picture))
        height, width, _ = prepared.shape
        padding = [(0, -side % self._multiple) for side in (height, width)]
        padded = np.pad(prepared, (*padding, (0, 0)), mode="edge")

        def of_picture(x: Any) -> np.ndarray:
            array = np.asarray(x)[0]
            # Maps are cut to the picture; a detector's boxes end there already.
            return array[:height, :width] if array.shape[:2] == padded.shape[:2] else array

        sizes = np.array([[height, width]], np.int32)
        return jax.tree.map(of_picture, function(padded[None], sizes))


def load_predictor(path: str | os.PathLike[str], *, model: nn.Module | None = None, multiple: int = 32) -> Predictor:
    """The predictor of a model file, or of a training run's folder.

    Args:
        path: a file that `dz.save` or a training wrote with its task and preprocessing, or the folder of a run.
        model: takes the variables in place of the model that the file describes, for modules of one's own.
        multiple: sides of pictures are padded to multiples of this many pixels.

    Returns:
        A function from a picture (h, w, channels) as a file holds it to the task's prediction.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or does not say what its model is for.

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
    file = Path(path)
    if file.is_dir():
        if not (file / MODEL_FILE).is_file():
            return _of_old_run(file, multiple)
        file = file / MODEL_FILE
    model, variables, metadata = weights.load_with_metadata(file, model=model)
    if missing := [name for name in ("task", "preprocessing") if name not in metadata]:
        raise ValueError(
            f"{file} does not say its {' and '.join(missing)}, which a prediction needs: write it again with"
            " dz.save(path, model, variables, task=..., preprocessing=...), or use dz.load and Predictor(...)"
        )
    try:
        task = tasks.from_description(metadata["task"])
        preprocessing = Preprocessing(**metadata["preprocessing"])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file} describes a task or preprocessing that cannot be made: {error}") from error
    return Predictor(task, model, variables, preprocessing, multiple=multiple)


def _of_old_run(folder: Path, multiple: int) -> Predictor:
    """The predictor of a run that an older densezoo left, with its model's names in model.json."""
    from densezoo.train import load_variables
    from densezoo.zoo import SKIPS, UPSAMPLERS, create_model, look_up

    path = folder / "model.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no {MODEL_FILE}: expected the --out folder of a training")
    try:
        old = json.loads(path.read_text())
        classes = old["num_classes"]
        fields: dict[str, Any] = {
            field: look_up(old[field], table, kind)
            for field, table, kind in (("upsample", UPSAMPLERS, "upsampler"), ("skip", SKIPS, "skip"))
            if old.get(field)
        }
        model = create_model(old["model"], old["encoder"], classes, **fields)
        preprocessing = Preprocessing(old["channels"], old["mean"], old["std"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not the configuration of a model: {error!r}") from error
    task = tasks.Segmentation(num_classes=classes, ignore_index=None)  # which a prediction does not need
    return Predictor(task, model, load_variables(folder, "best"), preprocessing, multiple=multiple)
