"""Weights and settings from repositories of the Hugging Face hub, or from folders laid out like them."""

import re
import warnings
from collections.abc import Sequence
from pathlib import Path as File
from typing import Any

import flax.linen as nn
import jax

from densezoo.encoders import ENCODERS
from densezoo.weights._convert import from_torch
from densezoo.weights._families import FAMILIES, family_of, kind_of
from densezoo.weights._parameters import parts_of
from densezoo.weights._repository import Config, Repository, file_of, model_config
from densezoo.weights._shards import WEIGHTS, shards_of
from densezoo.zoo import create_encoder


def from_hub(
    repository: Repository,
    model: nn.Module | None = None,
    *,
    revision: str | None = None,
    strict: bool = True,
    in_channels: int | None = None,
    key: jax.Array | None = None,
    entry: str | None = None,
) -> tuple[nn.Module, dict[str, Any]]:
    """Loads a pretrained model or encoder from the Hugging Face hub.

    Builds what the repository's configuration describes: an encoder of timm (`timm/resnet50.a1_in1k`) or of
    segmentation_models_pytorch (`smp-hub/resnet50.imagenet`), a whole model that the latter saved, or transformers'
    SegFormer, UPerNet, DPT and Depth Anything (`nvidia/segformer-b0-finetuned-ade-512-512`), or diffusers'
    `UNet2DModel`, alone or in a pipeline (`google/ddpm-cifar10-32`); the guide "Weights" lists them. `hub_settings`
    returns the preprocessing and the names of the classes.

    Downloads are cached, and the cache also works offline; `HF_HOME` and `HF_HUB_OFFLINE=1` are respected. Needs
    huggingface_hub (`pip install "densezoo[hub]"`), unless `repository` is a folder.

    Args:
        repository: "owner/name", or a folder with the same files: config.json, and model.safetensors or
            pytorch_model.bin (nothing in them is executed), or several files and their index.
        model: the model to load into. If the weights are an encoder's, the rest is initialised with `key`. None builds
            what the repository's configuration describes.
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
        ValueError: if the configuration is of a model or encoder that densezoo does not have, or has an option that it
            does not have, or is of an encoder that computes something else than the model's; or if the weights do not
            match.

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
    config, folder = model_config(repository, revision)
    options: dict[str, Any] = {"strict": strict, "in_channels": in_channels, "key": key, "entry": entry}
    kind = kind_of(config)
    if kind is None:
        return _load_encoder(repository, config, model, revision, options)
    name = re.sub(r"^tu-([^.]*).*", r"\1", str(config.options.get("encoder_name", "")))
    options["architecture"] = name if name in ENCODERS else None
    if model is not None:
        weights = _weights(repository, FAMILIES[kind].files if kind in FAMILIES else WEIGHTS, revision, folder)
        return model, from_torch(model, weights, **options)
    family = family_of(config, kind)
    model = family.build(config)
    weights = _weights(repository, family.files, revision, folder)
    try:
        return model, from_torch(model, weights, **options)
    except ValueError as error:
        raise ValueError(f"cannot load the {kind} that {config.source} describes: {error}") from error


def _load_encoder(
    repository: Repository, config: Config, model: nn.Module | None, revision: str | None, options: dict[str, Any]
) -> tuple[nn.Module, dict[str, Any]]:
    """Loads an encoder of timm or segmentation_models_pytorch, alone or as the encoder of a model."""
    # segmentation_models_pytorch's repositories are named after the encoder, then a dot and the data.
    said = config.options.get("architecture")
    architecture = str(said or re.sub(r"\..*", "", File(repository).name))
    if model is None:
        model = _encoder(repository, said, architecture)
    part = "encoder" if "encoder" in parts_of(model) else None
    weights = _weights(repository, WEIGHTS, revision)
    if "architecture" in config.options and architecture not in ENCODERS:
        warnings.warn(
            f"{repository} is of {architecture!r}, which densezoo does not have: only names and shapes were compared"
            " with the given model, which may compute something else",
            stacklevel=3,
        )
    known = architecture if architecture in ENCODERS else None
    return model, from_torch(model, weights, part=part, architecture=known, **options)


def _weights(repository: Repository, names: Sequence[str], revision: str | None, folder: str = "") -> File:
    """The file of the weights, or the index of several, which are then there too."""
    weights = file_of(repository, [folder + name for name in names], revision)
    if weights.name.endswith(".index.json"):
        for name in dict.fromkeys(shards_of(weights).values()):
            file_of(repository, (folder + name,), revision)
    return weights


def _encoder(repository: Repository, said: Any, name: str) -> nn.Module:
    if name not in ENCODERS:
        said = f"says that it is {said!r}" if said else "names no architecture"
        raise ValueError(
            f"the config.json of {repository} {said}, and densezoo has no encoder {name!r} (dz.list_encoders()): create"
            " the model that the weights are for, and pass it as `model`"
        )
    return create_encoder(name)
