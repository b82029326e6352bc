"""Predictors from model files and from the folders of runs."""

import json
import os
import warnings
from pathlib import Path

import flax.linen as nn

from densezoo import tasks, weights
from densezoo.predictor.predictor import Predictor
from densezoo.preprocessing import Preprocessing
from densezoo.train.recipe import MODEL_FILE


def load_predictor(
    path: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    pad_to: int | None = None,
    max_programs: int | None = None,
    multiple: int | None = None,
) -> Predictor:
    """Loads a predictor from a model file or from the folder of a training run.

    Args:
        path: a file that `dz.save` or `train` wrote with preprocessing and a task, or for segmentation with names of
            classes instead; or the folder of a run.
        model: a model to use instead of the one that the file describes, for your own modules.
        pad_to: pads sides to multiples of this many pixels, which compiles fewer sizes but is an approximation. None
            computes exactly. See `Predictor`.
        max_programs: the most compiled programs, for images of many sizes. See `Predictor`.
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
            return _of_old_run(file, pad_to, max_programs)
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
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise ValueError(f"{file} describes an invalid task or preprocessing: {error}") from error
    return Predictor(task, model, variables, preprocessing, pad_to=pad_to, max_programs=max_programs)


def _of_old_run(folder: Path, pad_to: int | None, max_programs: int | None) -> Predictor:
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
        task = tasks.Segmentation(num_classes=classes, ignore_index=None)  # prediction does not need it
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not the configuration of a model: {str(error)[:300]}") from error
    variables = load_variables(folder, "best")
    try:
        return Predictor(task, model, variables, preprocessing, pad_to=pad_to, max_programs=max_programs)
    except (RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe the model of the run: {str(error)[:1000]}") from error
