"""Initialisation from another model's file, for other classes or from its encoder alone."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from densezoo.messages import shortened
from densezoo.weights._convert import from_torch
from densezoo.weights._files import read_with_metadata
from densezoo.weights._parameters import Path, initialise, parts_of, shapes_of

_log = logging.getLogger(__name__)
_HEADS = ("head", "box_head", "mask_head", "semantic_head", "auxiliary")


def start_from(
    model: nn.Module,
    path: str | os.PathLike[str] | Mapping[str, Any],
    *,
    part: str | None = None,
    in_channels: int | None = None,
    key: jax.Array | None = None,
) -> dict[str, Any]:
    """Initialises a model's variables from a trained model, for fine-tuning, also to other classes.

    Encoder and decoder must match. A head with another number of classes is initialised with `key`, and a warning is
    logged. With `part="encoder"`, only the encoder is loaded, into a model with any decoder.

    Args:
        model: the model to train.
        path: a file of `dz.save` or of a training run (`model.safetensors`), or a PyTorch checkpoint as in `from_torch`
            (a file or a mapping of names to arrays), of a whole model or of an encoder.
        part: the part to load, such as "encoder". None loads everything but a head that does not match.
        in_channels: channels of the images; None for those of the file.
        key: random key for arrays that are not loaded; None means `jax.random.key(0)`.

    Returns:
        Variables for `model.apply`, `create_state(variables=...)` or `train(variables=...)`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the arrays to load do not match. The message lists what is missing, unexpected or mismatched.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> encoder, images = dz.PlainEncoder((4, 8)), jnp.zeros((1, 16, 16, 3))
        >>> trained = dz.create_model("unet", encoder, num_classes=2)
        >>> path = tempfile.mkdtemp() + "/model.safetensors"
        >>> dz.save(path, trained, jax.jit(trained.init)(jax.random.key(0), images))
        >>> variables = start_from(dz.create_model("unet", encoder, num_classes=5), path)
        >>> variables["params"]["head"]["conv"]["bias"].shape
        (5,)
        >>> variables = start_from(dz.create_model("fpn", encoder), path, part="encoder")
    """
    parts = parts_of(model)
    if part is not None and part not in parts:
        raise ValueError(f"part must be one of {', '.join(parts)}, or None for the whole model; got {part!r}")
    arrays, metadata = ({}, None) if isinstance(path, Mapping) else read_with_metadata(path)
    if metadata is None:
        return _from_pytorch(model, path, parts, part, in_channels, key)
    tree: dict[Path, Any] = {tuple(name.split("/")): value for name, value in arrays.items()}
    if part is not None and not any(len(name) > 1 and name[1] == part for name in tree):
        tree = {(collection, part, *rest): value for (collection, *rest), value in tree.items()}  # only this part
    channels = in_channels or metadata.get("preprocessing", {}).get("channels", 3)
    expected = shapes_of(model, channels)
    taken, lines = {}, []
    wanted = [name for name in expected if part is None or name[1] == part]
    refitted = {
        name[1]
        for name in wanted
        if part is None and name[1] in _HEADS and (name not in tree or np.shape(tree[name]) != expected[name].shape)
    }
    for name in wanted:
        if name[1] in refitted:
            continue
        if name not in tree:
            lines.append(f"{'/'.join(name)} is missing")
        elif np.shape(tree[name]) != expected[name].shape:
            lines.append(f"{'/'.join(name)} is mismatched: {np.shape(tree[name])}, expected {expected[name].shape}")
        else:
            taken[name] = jax.numpy.asarray(tree[name], expected[name].dtype)
    within = {name[1] for name in wanted} - refitted
    lines += [f"{'/'.join(n)} is unexpected" for n in tree if n[1] in within and n not in expected]
    if lines:
        raise ValueError(f"{path} does not fit the model: {shortened(lines)}")
    for name in sorted(refitted):
        _log.warning("the %s of %s does not match this model (other classes?): it is newly initialised", name, path)
    rest = [name for name in expected if name not in taken]
    return unflatten_dict(taken | initialise(model, rest, channels, jax.random.key(0) if key is None else key))


def _from_pytorch(
    model: nn.Module, path: Any, parts: dict[str, nn.Module], part: str | None, in_channels: int | None, key: Any
) -> dict[str, Any]:
    options = {"in_channels": in_channels, "key": key}
    if part is not None:
        return from_torch(model, path, part=part, **options)
    try:
        return from_torch(model, path, **options)
    except ValueError:
        if not set(_HEADS) & set(parts):
            raise
    variables = from_torch(model, path, part="encoder", **options)
    for name in parts:
        if name != "encoder" and name not in _HEADS:
            other = from_torch(model, path, part=name, **options)
            variables = {
                collection: tree | {name: other[collection][name]} if name in other[collection] else tree
                for collection, tree in variables.items()
            }
    name = "the checkpoint" if isinstance(path, Mapping) else path
    _log.warning("the head of %s does not match this model (other classes?): it is newly initialised", name)
    return variables
