"""Initialisation from another model's file, for other classes or from its encoder alone."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from densezoo.messages import option, shortened
from densezoo.weights._convert import fill, from_torch
from densezoo.weights._describe import build
from densezoo.weights._files import read_with_metadata
from densezoo.weights._fingerprints import names_of
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

    Encoder and decoder must match. All arrays of the heads that match are loaded. Those that do not, such as the last
    layer if the classes differ, are initialised with `key`. Heads that the model lacks, such as the mask head for a
    Faster R-CNN, are skipped. Logged warnings list both. With `part="encoder"`, only the encoder is loaded, into a
    model with any decoder.

    Args:
        model: the model to train.
        path: a file of `dz.save` or of a training run (`model.safetensors`), or a PyTorch checkpoint as in `from_torch`
            (a file or a mapping of names to arrays), of a whole model or of an encoder.
        part: the part to load, such as "encoder". None loads the whole model.
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
        return _from_pytorch(model, path, part, in_channels, key)
    tree: dict[Path, Any] = {tuple(name.split("/")): value for name, value in arrays.items()}
    if part is not None and not any(len(name) > 1 and name[1] == part for name in tree):
        tree = {(collection, part, *rest): value for (collection, *rest), value in tree.items()}  # only this part
    stored = _channels_of(path, metadata)
    channels = in_channels or stored or 3
    expected = shapes_of(model, channels)
    tree = {_as_expected(name, expected): value for name, value in tree.items()}
    taken, lines = {}, []
    wanted = [name for name in expected if part is None or name[1] == part]
    renewed = []
    for name in wanted:
        if name in tree and np.shape(tree[name]) == expected[name].shape:
            taken[name] = jax.numpy.asarray(tree[name], expected[name].dtype)
        elif part is None and name[1] in _HEADS:
            renewed.append(name)
        elif name not in tree:
            lines.append(f"{'/'.join(name)} is missing")
        else:
            lines.append(f"{'/'.join(name)} is mismatched: {np.shape(tree[name])}, expected {expected[name].shape}")
    within = {name[1] for name in wanted} - {name[1] for name in renewed}
    lines += [f"{'/'.join(n)} is unexpected" for n in tree if n[1] in within and n not in expected]
    if lines:
        hint = ""
        if stored is not None and stored != channels:
            choice = option("channels", stored)
            hint = f". The file's model takes images of {stored} channels, not {channels}: pass {choice}"
        elif other := _other_encoder(model, expected, tree, metadata.get("model")):
            hint = f". {other}"
        raise ValueError(f"{path} does not fit the model: {shortened(lines)}{hint}")
    _warn_of(renewed, path)
    if part is None:
        _warn_of_unused(["/".join(name) for name in tree if name not in expected], path)
    rest = [name for name in expected if name not in taken]
    return unflatten_dict(taken | initialise(model, rest, channels, jax.random.key(0) if key is None else key))


def _channels_of(path: Any, metadata: Mapping[str, Any]) -> int | None:
    """The channels of the images of a file's model; None if it has no preprocessing."""
    preprocessing = metadata.get("preprocessing")
    if preprocessing is None:
        return None
    channels = preprocessing.get("channels") if isinstance(preprocessing, dict) else None
    if type(channels) is not int or not 1 <= channels < 2**16:
        raise ValueError(f"{path} describes an invalid preprocessing: {str(preprocessing)[:100]}")
    return channels


def _other_encoder(model: nn.Module, expected: Mapping[Path, Any], tree: Mapping[Path, Any], description: Any) -> str:
    """States that the file's encoder is another one of the zoo than the model's; "" if that is unknown."""
    try:
        stored = build(description)
    except Exception:  # only variables, or a description of a newer version: a field may contain any value
        return ""
    found = []
    for encoder, arrays in ((getattr(stored, "encoder", stored), tree), (getattr(model, "encoder", model), expected)):
        stem = getattr(encoder, "stem", None)
        shapes = {name: array.shape for name, array in arrays.items() if name[1] == "encoder"}
        found.append(names_of(shapes, stem and ("params", "encoder", *stem.split("/"), "kernel")))
    of_file, of_model = found
    different = of_file and of_model and not {*of_file} & {*of_model}
    return f"The file's encoder is {' or '.join(of_file)}, the model's is {' or '.join(of_model)}" if different else ""


def _from_pytorch(model: nn.Module, path: Any, part: str | None, in_channels: int | None, key: Any) -> dict[str, Any]:
    if part is not None:
        return from_torch(model, path, part=part, in_channels=in_channels, key=key)
    # Not strict about conventions, of which it warns: training goes on from these values anyway.
    loaded = fill(model, path, strict=False, in_channels=in_channels)
    report = loaded.report
    new = [parameter for parameter in report.parameters if parameter.path not in loaded.values]
    heads = [parameter for parameter in report.parameters if parameter.path[1] in _HEADS]
    others = [parameter for parameter in report.parameters if parameter.path[1] not in _HEADS]
    # Unexpected arrays must belong to heads: an array of a larger encoder or decoder means another model.
    of_heads = {_first(p.name) for p in heads if p.name} - {_first(p.name) for p in others if p.name}
    beyond = {_first(name) for name in report.unexpected} - of_heads
    if any(parameter in others for parameter in new) or beyond:
        raise ValueError(report.message(strict=True))
    source = "the checkpoint" if isinstance(path, Mapping) else path
    _warn_of([parameter.path for parameter in new], source)
    _warn_of_unused(list(report.unexpected), source)
    return loaded.completed(model, key)


def _as_expected(name: Path, expected: Mapping[Path, Any]) -> Path:
    """The name of an array in the model: scale and bias of a `FrozenBatchNorm` are statistics, not parameters."""
    collection, *rest = name
    other = ({"params": "batch_stats", "batch_stats": "params"}.get(collection, collection), *rest)
    return other if rest[-1] in ("scale", "bias") and name not in expected and other in expected else name


def _first(name: str) -> str:
    return name.split(".")[0]


def _warn_of(new: list[Path], source: Any) -> None:
    """Lists the arrays of the heads that are newly initialised."""
    for head in dict.fromkeys(path[1] for path in new):
        names = shortened(["/".join(path) for path in new if path[1] == head], ", ", 20)
        _log.warning(
            "the %s of %s does not match this model (other classes?): newly initialised: %s", head, source, names
        )


def _warn_of_unused(names: list[str], source: Any) -> None:
    """Lists the arrays of the file that the model has no place for."""
    if names:
        _log.warning("the model has no part for %d arrays of %s: %s", len(names), source, shortened(names, ", ", 20))
