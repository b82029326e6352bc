"""densezoo's own files: variables as safetensors, with a description of the model."""

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path as File
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from densezoo.files import replace
from densezoo.messages import shortened
from densezoo.weights._describe import Unknown, build, describe
from densezoo.weights._files import NATIVE, is_storable, read_with_metadata
from densezoo.weights._parameters import Path, check_kinds, check_variables, differences
from densezoo.weights._transfer import start_from

_FORMAT = 1
_ALWAYS_ALLOWED = 4096


class NotDescribable(ValueError):
    """Raised if a model contains something that a file cannot describe, such as a user-defined module."""


def save(
    path: str | os.PathLike[str],
    model: nn.Module | None,
    variables: Mapping[str, Any],
    *,
    task: Any = None,
    preprocessing: Any = None,
    classes: Sequence[str] | None = None,
) -> None:
    """Saves a model and its variables in one safetensors file, which `load` reads.

    The file describes the model by the names of densezoo's classes and their fields; it contains no code. The file is
    written atomically.

    Args:
        path: path of the file, *.safetensors by convention.
        model: a model of densezoo's modules. None saves only the variables, for a model with your own modules.
        variables: the model's variables. All collections are saved with their dtypes.
        task: the model's task, such as `dz.tasks.Segmentation(...)`; `dz.load_predictor` needs it.
        preprocessing: preprocessing of the images, a `dz.Preprocessing`; `dz.load_predictor` needs it.
        classes: names of the classes; None for those of the task.

    Raises:
        TypeError: if `path` is not a path.
        ValueError: if the model cannot be described, for instance because it contains your own modules
            (`NotDescribable`), or if the variables belong to another model.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> model = dz.create_model("unet", dz.PlainEncoder((4, 8)), num_classes=2, upsample=dz.Bilinear)
        >>> images = jnp.ones((1, 16, 16, 3))
        >>> variables = jax.jit(model.init)(jax.random.key(0), images)
        >>> path = tempfile.mkdtemp() + "/model.safetensors"
        >>> dz.save(path, model, variables)
        >>> same, loaded = dz.load(path)
        >>> same.head.num_classes, bool((loaded["params"]["head"]["conv"]["bias"] == 0).all())
        (2, True)
    """
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"dz.save(path, model, variables) takes the path first; got a {type(path).__name__}")
    if model is not None:
        check_kinds(model, variables)
    tree: dict[Path, Any] = flatten_dict(dict(variables))
    if not tree or any("/" in name for path in tree for name in path):
        raise ValueError(f"expected the variables of a model, nested dictionaries of arrays, got {sorted(variables)}")
    description = None
    if model is not None:
        try:
            description = describe(model, type(model).__name__)
        except ValueError as error:
            raise NotDescribable(str(error)) from error
        check_variables(model, variables)
    # C-contiguous copies, because safetensors writes the raw memory.
    arrays = {"/".join(path): np.array(value, order="C", copy=True) for path, value in tree.items()}
    if wrong := [f"{name} is {array.dtype}" for name, array in arrays.items() if not is_storable(array.dtype)]:
        raise ValueError(f"these dtypes cannot be saved: {shortened(wrong)}")
    metadata = {"format": _FORMAT, "version": _version(), "model": description}
    if task is not None:
        from densezoo import tasks  # needs more packages than a model

        metadata["task"] = tasks.describe(task)
        classes = classes or getattr(task, "class_names", None)
    if preprocessing is not None:
        metadata["preprocessing"] = dataclasses.asdict(preprocessing)
    if classes:
        metadata["classes"] = list(classes)
    replace(File(path), lambda temporary: save_file(arrays, temporary, metadata={NATIVE: json.dumps(metadata)}))


def load(
    path: str | os.PathLike[str], *, model: nn.Module | None = None, strict: bool = True, part: str | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a model and its variables from a file of `save`. Nothing in the file is executed.

    Args:
        path: path of the file.
        model: a model to use instead of the one that the file describes.
        strict: whether all variables must match. False initialises what of the heads does not match. The variables are
            then `dz.weights.start_from(model, path)`, which has more options.
        part: the part of `model` to load, such as "encoder"; the others are initialised. The variables are
            `dz.weights.start_from(model, path, part=part)`.

    Returns:
        The model and its variables.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, was not written by `save`, is from a newer densezoo, or describes a model
            that cannot be built; or if it does not match the given model.
    """
    if part is not None or not strict:
        if model is None:
            raise ValueError("strict=False and part= need the model to load the variables into: pass model= too")
        return model, start_from(model, path, part=part)
    model, variables, _ = load_with_metadata(path, model=model)
    return model, variables


def load_with_metadata(
    path: str | os.PathLike[str], *, model: nn.Module | None = None
) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:
    """Like `load`, and also returns the file's `task`, `preprocessing`, `classes` and `version`."""
    arrays, metadata = read_with_metadata(path)
    if metadata is None:
        raise ValueError(
            f"{path} is not a file of dz.save: it has no description of a model. For a PyTorch checkpoint, build the"
            " model and call dz.weights.from_torch(model, path)"
        )
    tree = {tuple(name.split("/")): _array(value) for name, value in arrays.items()}
    hint = ""
    if model is None:
        # No field of a model is larger than its largest axis, except for sizes in pixels and similar fields.
        largest = max(_ALWAYS_ALLOWED, len(arrays), *(side for array in arrays.values() for side in array.shape), 0)
        model = _build(path, metadata, largest)
        try:
            lines = differences(model, tree)
        except Exception as error:  # from Flax, JAX or a module: a field may contain any value
            raise _not_buildable(path, error) from error
    else:
        lines = differences(model, tree)
        hint = ". For other classes or another decoder: variables = dz.weights.start_from(model, path)"
    if lines:
        raise ValueError(f"the variables in {path} are not those of the model: {shortened(lines)}{hint}")
    return model, unflatten_dict(tree), metadata


def _build(path: str | os.PathLike[str], metadata: dict[str, Any], largest: float) -> nn.Module:
    if metadata["model"] is None:
        raise ValueError(f"{path} only has variables: build their model in code and call dz.load(path, model=model)")
    try:
        if metadata["format"] > _FORMAT:
            raise Unknown(f"the format {metadata['format']}")
        model = build(metadata["model"], largest)
        if isinstance(model, nn.Module):
            return model
        raise Unknown("something else than a model")
    except (Unknown, RecursionError) as error:
        raise ValueError(
            f"{path} has {str(error)[:200]} in its model, which densezoo {_version()} does not support; the file"
            f" was written by densezoo {metadata['version']}. Update densezoo, or build the model in code and call"
            " dz.load(path, model=model)"
        ) from error
    except Exception as error:  # a field may contain any value
        raise _not_buildable(path, error) from error


def _not_buildable(path: str | os.PathLike[str], error: Exception) -> ValueError:
    return ValueError(f"{path} describes a model that cannot be built: {str(error)[:200]}")


def _array(value: np.ndarray) -> Any:
    # Keep a 64-bit NumPy array if JAX, with 64-bit types disabled, would round it.
    return jnp.array(value) if jax.dtypes.canonicalize_dtype(value.dtype) == value.dtype else np.array(value)


def _version() -> str:
    import densezoo  # imports this module

    return densezoo.__version__
