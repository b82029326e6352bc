"""Conversion of a model's variables to a PyTorch checkpoint."""

import os
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict

from densezoo.messages import shortened
from densezoo.naming import DETECTORS, SMP, TIMM, Naming, spelled_out
from densezoo.weights._convert import folded_biases
from densezoo.weights._names import Names, as_numpy, read_names
from densezoo.weights._parameters import (
    Parameter,
    Path,
    check_variables,
    choose,
    expected_names,
    namings_of,
    parameters_of,
    parts_of,
    whole,
)
from densezoo.weights._prefix import prefix_of


def to_torch(
    model: nn.Module,
    variables: Mapping[str, Any],
    *,
    naming: str | None = None,
    like: str | os.PathLike[str] | Mapping[str, Any] | None = None,
) -> dict[str, np.ndarray]:
    """Converts a model's variables to a reference's names and axes: the inverse of `from_torch`.

    The round trip is bit-exact, except for biases that `from_torch` merged into running means; they stay there.
    `num_batches_tracked` of batch norms is zero. Auxiliary heads are omitted, because no reference has them.

    Args:
        model: a `SegmentationModel`, a detector, a `PyramidModel`, or an encoder.
        variables: the model's variables, `params` and, if it has any, `batch_stats`.
        naming: the source of the names, as listed in the guide "Weights", or the prefix of the encoder's names, such
            as "encoder.model." for segmentation_models_pytorch's `tu-` encoders. The default is
            "segmentation_models_pytorch" for a whole model, "torchvision and timm" for an encoder, and "torchvision's
            detectors" for detectors and pyramids, or else another source that has all names.
        like: an alternative to `naming`: a checkpoint of the reference, such as its `state_dict()`. The result has
            exactly its names, so that it always loads strictly. Arrays that the model does not have, such as a
            classifier, are copied from `like`, and a bias that was merged into a running mean is zero.

    Returns:
        Arrays by name. bfloat16 arrays are converted to float32, because NumPy and `torch.from_numpy` lack bfloat16.

    Raises:
        ValueError: if the reference has no name for an array, or the variables belong to another model.

    Example:
        >>> import tempfile, jax, jax.numpy as jnp
        >>> from safetensors.numpy import save_file
        >>> import densezoo as dz
        >>> encoder = dz.ResNet((1, 1), dz.BasicBlock, width=4)
        >>> variables = jax.jit(encoder.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
        >>> arrays = dz.weights.to_torch(encoder, variables)
        >>> arrays["layer2.0.conv1.weight"].shape
        (8, 4, 3, 3)
        >>> save_file(arrays, tempfile.mkdtemp() + "/resnet.safetensors")
    """
    check_variables(model, variables)
    tree: dict[Path, Any] = flatten_dict(dict(variables))
    parts = parts_of(model)
    if like is not None:
        if naming is not None:
            raise ValueError(f"`like` determines the names: omit naming={naming!r}")
        names = read_names(like)
        expected = expected_names(parts, tree)
        names.take_off(prefix_of(names, expected.values(), names.source))
        chosen = choose(parts, expected, names)
        parameters = [p for part in parts for p in parameters_of(part, tree, chosen[part], parts[part])]
        parameters = whole(parameters, tree)
        return _completed(_arrays(parameters, tree, names.source), parameters, names)
    namings = {part: namings_of(module) for part, module in parts.items()}
    sources = [naming] if naming else _sources(namings)
    found = {source: _named(parts, tree, source) for source in sources}
    source = next((s for s in sources if all(p.name for p in found[s])), sources[0])
    if not any(p.name for p in found[source]):
        known = dict.fromkeys(n.source for each in namings.values() for n in each)
        raise ValueError(f"the model has no names in {source!r}; there are: {', '.join(known) or 'none for it'}")
    return _arrays(found[source], tree, source)


def _sources(namings: Mapping[str, list[Naming]]) -> list[str]:
    """The available sources of names, the default of this kind of model first."""
    usual = TIMM if "" in namings else DETECTORS if "neck" in namings else SMP
    return list(dict.fromkeys([usual, *(naming.source for each in namings.values() for naming in each)]))


def _named(parts: Mapping[str, nn.Module], tree: Mapping[Path, Any], source: str) -> list[Parameter]:
    """The arrays under a source's names. Each part uses the naming that covers most of its arrays."""
    namings = {part: namings_of(module) for part, module in parts.items()}
    sources = {source, *(n.source for each in namings.values() for n in each if n.prefix == source)}
    parameters: list[Parameter] = []
    for part, each in namings.items():
        fitting = [n for n in each if n.prefix == source] or [n for n in each if n.source in sources]
        forms = [parameters_of(part, tree, form, parts[part]) for form in fitting or [None]]
        parameters += min(forms, key=lambda form: sum(p.name is None for p in form))
    return whole(parameters, tree)


def _arrays(parameters: list[Parameter], tree: Mapping[Path, Any], source: str) -> dict[str, np.ndarray]:
    nameless = sorted((p.path for p in parameters if p.name is None), key=lambda path: path[0] != "params")
    if unnamed := ["/".join(path) for path in nameless]:
        raise ValueError(
            f"{len(unnamed)} arrays of the model have no name in {source!r}: {shortened(unnamed)}. The reference lacks"
            " these parts, so the model cannot be exported; dz.save can save every model."
        )
    arrays: dict[str, np.ndarray] = {}
    for parameter in parameters:
        name = str(parameter.name)
        if name in arrays:
            raise ValueError(
                f"two arrays of the model have the name {name} in {source!r}, one is {'/'.join(parameter.path)}"
            )
        array = parameter.to_there(np.asarray(tree[parameter.path]))
        several = spelled_out(name)
        shares = np.split(array, len(several)) if len(several) > 1 else [array]
        arrays |= {each: _exported(share) for each, share in zip(several, shares, strict=True)}
        if name.endswith(".running_mean"):
            arrays[name.removesuffix("running_mean") + "num_batches_tracked"] = np.zeros((), np.int64)
    return arrays


def _exported(array: np.ndarray) -> np.ndarray:
    """A C-contiguous copy, because safetensors writes the raw memory; float32 instead of bfloat16."""
    dtype = np.float32 if array.dtype == ml_dtypes.bfloat16 else array.dtype
    return np.array(array, dtype, order="C", copy=True)


def _completed(arrays: Mapping[str, np.ndarray], parameters: list[Parameter], like: Names) -> dict[str, np.ndarray]:
    """The arrays under exactly the names of another checkpoint, completed by arrays that only that one has."""
    ours = {name: arrays[name].shape for p in parameters for name in spelled_out(str(p.name))}
    wrong = [f"{name} is missing in it" for name in ours if name not in like]
    wrong += [
        f"{name} is {np.shape(like[name])} in it, here {shape}"
        for name, shape in ours.items()
        if name in like and np.shape(like[name]) != shape
    ]
    if wrong:
        raise ValueError(f"{like.source} is not of the same model: {shortened(wrong)}")
    folded = folded_biases(parameters, like)

    def value(name: str) -> np.ndarray:
        if name in arrays:
            return arrays[name]
        array = _exported(as_numpy(like[name]))
        return np.zeros_like(array) if name in folded else array

    beside = {name: _exported(as_numpy(array)) for name, array in like.beside.items()}
    return {like.wrapper + name: value(name) for name in like} | beside
