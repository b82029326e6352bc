"""PyTorch checkpoints -> the variables of a model."""

import dataclasses
import os
import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from densezoo.encoders import Encoder
from densezoo.naming import NEVER_NEEDED, Naming, spelled_out
from densezoo.weights._conventions import check_architecture, contradictions, doubt, doubt_of_frozen_norms
from densezoo.weights._names import Names, as_numpy, read_names
from densezoo.weights._parameters import (
    Parameter,
    Path,
    choose,
    expected_names,
    initialise,
    parameters_of,
    parts_of,
    paths_of,
    shapes_of,
    stem_path,
    whole,
)
from densezoo.weights._prefix import prefix_of
from densezoo.weights._report import Report


def from_torch(
    model: nn.Module,
    checkpoint: str | os.PathLike[str] | Mapping[str, Any],
    *,
    part: str | None = None,
    strict: bool = True,
    in_channels: int | None = None,
    key: jax.Array | None = None,
    entry: str | None = None,
    architecture: str | None = None,
) -> dict[str, Any]:
    """Loads a PyTorch checkpoint into a model's variables. Does not need torch or execute anything in the file.

    Supports the names of segmentation_models_pytorch, torchvision and timm (encoders; `backbone.*` of torchvision's
    detectors for a `PyramidModel`), and of plain U-Nets. The guide "Weights" lists them. Enclosing dictionaries and
    prefixes of wrappers (`module.`, `model.` or any other) are removed. Arrays without the prefix, such as a Lightning
    module's buffers, are skipped with a warning. The bias of a convolution before a batch norm is merged into the
    running mean if the model's convolution has no bias. Auxiliary heads, which no reference has, are initialised with
    `key`.

    Args:
        model: a `SegmentationModel`, a detector, a `PyramidModel`, or an encoder.
        checkpoint: a path as in `read_checkpoint`: a .safetensors, .pth or .pt file, an index or a folder. Or a mapping
            of names to arrays (NumPy, JAX or torch).
        part: the part of the model to load, such as "encoder" for a pretrained backbone, from its own checkpoint or
            from one of a larger model. A decoder or a head needs the names of a whole model. That part must match; the
            others are initialised with `key`.
        strict: whether everything must match. If False, matching arrays are loaded, the others are initialised with
            `key`, and a warning lists them.
        in_channels: number of image channels, if it differs from the checkpoint's. The first convolution's weights are
            repeated over the channels and scaled by the ratio, or summed for one channel, as in
            segmentation_models_pytorch.
        key: random key for arrays that are not loaded; None means `jax.random.key(0)`.
        entry: selects one of several copies of the weights in a checkpoint: a key of its dictionary, such as
            "state_dict_ema", or a prefix of the names, such as "teacher" for `teacher.conv1.weight`.
        architecture: name of the encoder that the weights were trained with, if names and shapes are ambiguous. For
            example, "efficientnet_b0" and "tf_efficientnet_b0" only differ in their padding. The model's encoder must
            compute the same. Without this argument, loading an ambiguous checkpoint warns.

    Returns:
        Variables for `model.apply`: `params`, and `batch_stats` if the model has batch norms.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read; if names or shapes do not match (the message lists all that do not), or
            with `strict=False` almost nothing matches; if the reference is known to compute something else than the
            model; or if the model has no such part.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> import densezoo as dz
        >>> from densezoo.weights import from_torch
        >>> encoder = dz.PlainEncoder(features=(4,), norm=None)
        >>> arrays = {"inc.double_conv.0.weight": np.zeros((4, 3, 3, 3)), "inc.double_conv.0.bias": np.zeros(4)}
        >>> arrays |= {"inc.double_conv.2.weight": np.zeros((4, 4, 3, 3)), "inc.double_conv.2.bias": np.ones(4)}
        >>> variables = from_torch(encoder, arrays)
        >>> encoder.apply(variables, jnp.ones((1, 2, 2, 3))).maps[0][0, 0, 0].tolist()
        [1.0, 1.0, 1.0, 1.0]
        >>> model = dz.create_model("fpn", encoder)
        >>> sorted(from_torch(model, arrays, part="encoder")["params"])
        ['decoder', 'encoder', 'head']
    """
    loaded = fill(model, checkpoint, part, strict, in_channels, entry, architecture)
    report, values = loaded.report, loaded.values
    if report:
        came = [name for name in report.came if not re.fullmatch(NEVER_NEEDED, name)]
        if strict or 10 * len(values) < min(len(report.parameters), len(came)):
            raise ValueError(report.message(strict=True))
        warnings.warn(report.message(strict=False), stacklevel=2)
    return loaded.completed(model, key)


@dataclasses.dataclass(frozen=True)
class Filled:
    """The arrays of a model that a checkpoint has.

    Attributes:
        values: the arrays by path.
        report: what does not match.
        tree: the shapes of all of the model's arrays.
        channels: the number of image channels.
    """

    values: dict[Path, jax.Array]
    report: Report
    tree: Mapping[Path, Any]
    channels: int

    def completed(self, model: nn.Module, key: jax.Array | None) -> dict[str, Any]:
        """The variables, with newly initialised arrays for those that the checkpoint lacks."""
        rest = [path for path in self.tree if path not in self.values]
        key = jax.random.key(0) if key is None else key
        new = initialise(model, rest, self.channels, key) if rest else {}
        return unflatten_dict(self.values | new)


def fill(
    model: nn.Module,
    checkpoint: str | os.PathLike[str] | Mapping[str, Any],
    part: str | None = None,
    strict: bool = True,
    in_channels: int | None = None,
    entry: str | None = None,
    architecture: str | None = None,
) -> Filled:
    """Finds the arrays of a model in a checkpoint; the arguments are those of `from_torch`."""
    if in_channels is not None and in_channels < 1:
        raise ValueError(f"in_channels must be at least 1, or None for the checkpoint's number; got {in_channels}")
    names = read_names(checkpoint, entry)
    parts = parts_of(model)
    if part is not None and part not in parts:
        what = f"one of {', '.join(parts)}" if "" not in parts else "None for a module without parts"
        raise ValueError(f"part must be {what}; got {part!r}")
    wanted = parts if part is None else {part: parts[part]}
    channels = in_channels or 3
    tree = shapes_of(model, channels)
    expected = expected_names(parts, tree)
    names.take_off(prefix_of(names, [expected[name] for name in wanted], names.source))
    names.warn_of_others()
    namings = choose(parts, expected, names)
    _check_conventions(model, wanted, namings, names, tree, architecture, strict=strict)

    def parameters_in(chosen: Iterable[str]) -> list[Parameter]:
        return [p for name in chosen for p in parameters_of(name, tree, namings[name], parts[name])]

    parameters = parameters_in(wanted)
    stem = next((p.name for p in parameters if p.path == stem_path(model)), None)
    if stem is not None and stem in names and np.ndim(names[stem]) == 4:
        came = np.shape(names[stem])[1]
        if in_channels is None and came != channels:
            channels = came
            tree = shapes_of(model, channels)
            parameters = parameters_in(wanted)
        elif came != channels:
            names[stem] = _spread(as_numpy(names[stem]), channels)
    if part is None:
        parameters = whole(parameters, tree)
    _join(parameters, names)

    shapes = {name: tuple(np.shape(array)) for name, array in names.items()}
    report = Report(names.source, model, part, parameters, shapes)
    values, used = _fill(parameters, names, report)
    others = parameters_in(name for name in parts if name not in wanted)
    # Ignored: the reference's arrays for other parts of the model, and those outside of this model.
    elsewhere = {p.name for p in others} | set(folded_biases(others, names))
    ignored = _ignored(wanted, {name: namings[name] for name in wanted}, parameters)
    report.unexpected = [n for n in names if n not in used | elsewhere and not re.fullmatch(ignored, n)]
    return Filled(values, report, tree, channels)


def _check_conventions(
    model: nn.Module,
    wanted: Mapping[str, nn.Module],
    namings: Mapping[str, Naming | None],
    names: Names,
    tree: Mapping[Path, Any],
    architecture: str | None,
    *,
    strict: bool,
) -> None:
    """Raises if the model is known to compute something else than the checkpoint's reference, and warns if unsure."""
    chosen = {part: namings[part] for part in wanted}
    if differences := contradictions(chosen, names):
        sources = dict.fromkeys(n.source for n in chosen.values() if n is not None and n.differs)
        message = (
            f"{names.source} has the names of {', '.join(sources)}, which compute something else than the model here:"
            f" {'; '.join(differences)}"
        )
        if strict and len(wanted) > 1:
            raise ValueError(f"{message}. strict=False loads the weights anyway")
        warnings.warn(message, stacklevel=4)
    part = "encoder" if "encoder" in wanted else "" if "" in wanted else None
    naming = None if part is None else chosen[part]
    if part is None or naming is None:
        return
    if message := doubt_of_frozen_norms(wanted[part], naming, list(names)):
        warnings.warn(f"{names.source}: {message}", stacklevel=4)
    if architecture is not None:
        check_architecture(architecture, wanted[part], naming)
    elif any(p.name in names for p in parameters_of(part, tree, naming)):
        shapes = {path: tuple(tree[path].shape) for path in paths_of(part, tree)}
        if message := doubt(wanted[part], naming, shapes, stem_path(model)):
            warnings.warn(f"{names.source}: {message}", stacklevel=4)


def _ignored(parts: Mapping[str, nn.Module], namings: Mapping[str, Naming | None], parameters: list[Parameter]) -> str:
    """A pattern of the checkpoint's names that these parts may ignore."""
    patterns = [NEVER_NEEDED, *(naming.ignored for naming in namings.values() if naming and naming.ignored)]
    if set(parts) == {"encoder", "neck"}:
        # The backbone of a detector, whose checkpoint also contains the heads.
        patterns.append(r"(rpn|roi_heads|head)\..*")
    if len(parts) == 1:
        # A part of a whole model's checkpoint: everything outside of it is ignored.
        (module,), (naming,) = parts.values(), namings.values()
        if naming is not None and naming.prefix:
            patterns.append(rf"(?!{re.escape(naming.prefix)}).*")
        elif naming is not None and not isinstance(module, Encoder):
            mine = "|".join(sorted({re.escape(p.name.split(".")[0]) for p in parameters if p.name}))
            patterns.append(rf"(?!(?:{mine})\.).*")
    return "|".join(f"(?:{pattern})" for pattern in patterns)


def _join(parameters: list[Parameter], names: Names) -> None:
    """Joins the arrays of the checkpoint that make up one array of the model, under the name with braces."""
    for name in (p.name for p in parameters if p.name):
        several = spelled_out(name)
        if len(several) > 1 and all(each in names for each in several):
            arrays = [as_numpy(names.pop(each)) for each in several]
            if len({array.shape for array in arrays}) > 1:
                shapes = ", ".join(f"{each} {array.shape}" for each, array in zip(several, arrays, strict=True))
                raise ValueError(f"{names.source}: expected arrays of one shape, got {shapes}")
            names[name] = np.concatenate(arrays)


def _spread(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Adapts an OIHW kernel to another number of input channels: summed for one, else repeated and scaled."""
    if channels == 1:
        return kernel.sum(1, keepdims=True, dtype=np.float32)
    repeated = kernel[:, np.arange(channels) % kernel.shape[1]]
    return repeated.astype(np.float32) * np.float32(kernel.shape[1] / channels)


def _fill(parameters: list[Parameter], names: Names, report: Report) -> tuple[dict[Path, jax.Array], set[str]]:
    """Returns the matching arrays by their paths, and the names that were used. Adds the others to `report`."""
    values: dict[Path, np.ndarray] = {}
    used: set[str] = set()
    for parameter in parameters:
        if parameter.name is None:
            report.unnamed.append("/".join(parameter.path))
        elif parameter.name not in names:
            report.missing.append(parameter.name)
        else:
            used.add(parameter.name)
            array = as_numpy(names[parameter.name])
            if array.shape != parameter.shape_there or not jnp.issubdtype(array.dtype, jnp.floating):
                expected = f"{parameter.shape_there} {np.dtype(parameter.dtype)}"
                report.mismatched.append(f"{parameter.name} came {array.shape} {array.dtype}, expected {expected}")
            else:
                values[parameter.path] = parameter.from_there(array)
                if parameter.offset and values[parameter.path].min(initial=0) < 0:
                    raise ValueError(
                        f"the reference's norms have a smaller epsilon than the model's, by {-parameter.offset:g}, and"
                        f" the variances {parameter.name} are too small to allow for it: create the encoder with"
                        " norm=partial(dz.BatchNorm, epsilon=...)"
                    )
    for name, mean in folded_biases(parameters, names).items():
        if mean in values:
            values[mean] = values[mean] - as_numpy(names[name]).astype(values[mean].dtype)
            used.add(name)
    return {path: jnp.asarray(value) for path, value in values.items()}, used


def folded_biases(parameters: list[Parameter], names: Mapping[str, Any]) -> dict[str, Path]:
    """Maps the names of biases that the model lacks to the running means that absorb them.

    norm(x + bias; mean) = norm(x; mean - bias).
    """
    sizes = {p.path: p.shape for p in parameters}
    folded = {}
    for parameter in parameters:
        *module, leaf = parameter.path[1:]
        mean = ("batch_stats", *module[:-1], "norm", "mean")
        if leaf != "kernel" or parameter.name is None or ("params", *module, "bias") in sizes or mean not in sizes:
            continue
        name = parameter.name.removesuffix("weight") + "bias"
        if name in names and np.shape(names[name]) == sizes[mean]:
            folded[name] = mean
    return folded
