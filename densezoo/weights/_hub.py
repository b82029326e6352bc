"""Weights and settings from repositories of the Hugging Face hub, or from folders laid out like them."""

import json
import os
import re
import warnings
from pathlib import Path as File
from typing import Any

import flax.linen as nn
import jax

from densezoo.encoders import ENCODERS
from densezoo.extras import require
from densezoo.weights import _diffusers
from densezoo.weights._convert import from_torch
from densezoo.weights._parameters import parts_of
from densezoo.weights._shards import WEIGHTS, shards_of
from densezoo.zoo import create_encoder


def from_hub(
    repository: str | os.PathLike[str],
    model: nn.Module | None = None,
    *,
    revision: str | None = None,
    strict: bool = True,
    in_channels: int | None = None,
    key: jax.Array | None = None,
    entry: str | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a pretrained encoder, or a model with one, from the Hugging Face hub.

    Supports repositories of timm (`timm/resnet50.a1_in1k`), of segmentation_models_pytorch's encoders
    (`smp-hub/resnet50.imagenet`), and of whole models that it saved. Downloads are cached, and the cache also works
    offline; `HF_HOME` and `HF_HUB_OFFLINE=1` are respected. Needs huggingface_hub (`pip install "densezoo[hub]"`),
    unless `repository` is a folder.

    Args:
        repository: "owner/name", or a folder with the same files: config.json, and model.safetensors or
            pytorch_model.bin (nothing in them is executed), or several files and their index.
        model: the model to load into. If the weights are an encoder's, the rest is initialised with `key`. None creates
            the encoder that the repository's configuration names.
        revision: a branch, tag or commit of the repository.
        strict: as in `from_torch`.
        in_channels: as in `from_torch`.
        key: as in `from_torch`.
        entry: as in `from_torch`.

    Returns:
        The model and its variables.

    Raises:
        ImportError: if huggingface_hub is needed and not installed.
        FileNotFoundError: if there is no such repository, folder or file, or no network access.
        ValueError: if the configuration names an encoder that densezoo does not have, or one that computes something
            else than the model's; or if the weights do not match.

    Example:
        >>> import dataclasses, json, pathlib, tempfile, jax, jax.numpy as jnp
        >>> from safetensors.numpy import save_file
        >>> import densezoo as dz
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "config.json").write_text(json.dumps({"architecture": "resnet18"}))
        >>> encoder = dz.create_encoder("resnet18")
        >>> shapes = jax.eval_shape(encoder.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        >>> variables = jax.tree.map(lambda x: jnp.zeros(x.shape), shapes)
        >>> save_file(dz.weights.to_torch(encoder, variables), folder / "model.safetensors")
        >>> encoder, same = dz.weights.from_hub(folder)
        >>> encoder.reductions, sorted(same)
        ((2, 4, 8, 16, 32), ['batch_stats', 'params'])
    """
    config = _config(repository, revision)
    if config.get("_class_name") == _diffusers.CLASS:
        model = _diffusers.unet_of_config(config) if model is None else model
        weights = _file(repository, _diffusers.WEIGHTS, revision)
        return model, from_torch(model, weights, strict=strict, in_channels=in_channels, key=key, entry=entry)
    # segmentation_models_pytorch's repositories are named after the encoder, then a dot and the data.
    architecture = str(config.get("architecture") or re.sub(r"\..*", "", File(repository).name))
    if model is None:
        if "_model_class" in config:
            raise ValueError(
                f"{repository} contains a whole {config['_model_class']} over {config.get('encoder_name')}: create that"
                " model, dz.create_model(...), and pass it as `model`"
            )
        model = _encoder(repository, config.get("architecture"), architecture)
    part = None
    if "_model_class" not in config and "encoder" in parts_of(model):
        part = "encoder"
    weights = _file(repository, WEIGHTS, revision)
    if weights.name.endswith(".index.json"):
        for name in dict.fromkeys(shards_of(weights).values()):
            _file(repository, (name,), revision)
    if "_model_class" in config:
        architecture = str(config.get("encoder_name")).removeprefix("tu-")
    elif "architecture" in config and architecture not in ENCODERS:
        warnings.warn(
            f"{repository} is of {architecture!r}, which densezoo does not have: only names and shapes were compared"
            " with the given model, which may compute something else",
            stacklevel=2,
        )
    known = architecture if architecture in ENCODERS else None
    options = {"strict": strict, "in_channels": in_channels, "key": key, "entry": entry}
    return model, from_torch(model, weights, part=part, architecture=known, **options)


def preprocessing(
    repository: str | os.PathLike[str], *, revision: str | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and standard deviation per channel, for images in 0..1, that a repository's weights were trained with.

    Args:
        repository: see `from_hub`.
        revision: see `from_hub`.

    Returns:
        `(mean, std)`, for `(image - mean) / std`, as in `dz.Preprocessing`.

    Raises:
        ImportError: as `from_hub`.
        FileNotFoundError: as `from_hub`.
        ValueError: if the configuration does not contain them.

    Example:
        >>> import pathlib, tempfile
        >>> from densezoo.weights import preprocessing
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "config.json").write_text('{"pretrained_cfg": {"mean": [0.5, 0.5, 0.5], "std": [1, 1, 1]}}')
        >>> preprocessing(folder)
        ((0.5, 0.5, 0.5), (1.0, 1.0, 1.0))
    """
    config = _config(repository, revision)
    # timm stores them in its settings of the weights, segmentation_models_pytorch at the top level.
    settings = config.get("pretrained_cfg", config)
    try:
        scale = float(settings.get("input_range", (0, 1))[1])  # 255 if the images are not in 0..1
        mean, std = (tuple(float(number) / scale for number in settings[name]) for name in ("mean", "std"))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError):
        raise ValueError(f"the config.json of {repository} contains no mean and std of its images") from None
    return mean, std


def _encoder(repository: str | os.PathLike[str], said: Any, name: str) -> nn.Module:
    if name not in ENCODERS:
        said = f"says that it is {said!r}" if said else "names no architecture"
        raise ValueError(
            f"the config.json of {repository} {said}, and densezoo has no encoder {name!r} (dz.list_encoders()): create"
            " the model that the weights are for, and pass it as `model`"
        )
    return create_encoder(name)


def _config(repository: str | os.PathLike[str], revision: str | None) -> dict[str, Any]:
    path = _file(repository, ("config.json",), revision)
    try:
        config = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} is not the configuration of a model: it contains a {type(config).__name__}")
    return config


def _file(repository: str | os.PathLike[str], names: tuple[str, ...], revision: str | None) -> File:
    """The first of the files that exists: in a folder, in the cache, or on the hub."""
    folder = File(repository)
    if folder.is_dir():
        found = next((folder / name for name in names if (folder / name).is_file()), None)
        if found is None:
            raise FileNotFoundError(f"the folder {folder} has no {' and no '.join(names)}")
        return found
    if not isinstance(repository, str) or not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise FileNotFoundError(f"expected a repository as owner/name, or a folder that exists; got {repository}")
    hub = require("huggingface_hub", instead="or pass a folder with the files of the repository")
    missing = require("huggingface_hub.errors").EntryNotFoundError
    reasons = []
    for name in names:
        try:
            return File(hub.hf_hub_download(repository, name, revision=revision))
        except (OSError, ValueError, missing) as error:
            reasons.append(str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__)
    raise FileNotFoundError(f"cannot get {' or '.join(names)} of {repository}: {reasons[0]}")
