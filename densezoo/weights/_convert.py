"""PyTorch checkpoints -> the variables of a model."""

import dataclasses
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from densezoo.weights._files import open_containers, read_checkpoint
from densezoo.weights._report import Misfit
from densezoo.weights.names import FAMILIES
from densezoo.weights.names.rules import KERNELS, LEAVES, NEVER_NEEDED, Family, Naming

_WRAPPERS = ("module.", "_orig_mod.", "model.")
Path = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Slot:
    """An array of the model, and where in the checkpoint it comes from.

    Attributes:
        path: where it is in the variables, collection first.
        shape: its shape here.
        dtype: its type here.
        name: its name in the checkpoint; None if the reference has no such array.
        axes: which axis there becomes each axis here.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: Any
    name: str | None
    axes: tuple[int, ...]

    @property
    def shape_there(self) -> tuple[int, ...]:
        """The shape that the checkpoint's array must have."""
        return tuple(self.shape[self.axes.index(axis)] for axis in range(len(self.shape)))


def from_torch(
    model: nn.Module,
    checkpoint: str | os.PathLike[str] | Mapping[str, Any],
    *,
    strict: bool = True,
    in_channels: int | None = None,
    key: jax.Array | None = None,
) -> dict[str, Any]:
    """The variables of a model, filled from a PyTorch checkpoint; nothing in a file is executed, torch is not needed.

    Names may be those of segmentation_models_pytorch, torchvision or timm (encoders; `backbone.*` of torchvision's
    detectors for a `PyramidModel`), or of a plain U-Net; `docs/weights.md` lists them. Prefixes of wrappers (`module.`,
    `_orig_mod.`, `model.`) and dictionaries around the weights are taken off. A convolution's bias right before a batch
    norm, where the model has none, goes into the running mean.

    Args:
        model: a `SegmentationModel`, a `PyramidModel`, or an encoder.
        checkpoint: path of a .safetensors, .pth or .pt file, or a mapping of names to arrays (NumPy, JAX or torch).
        strict: whether everything must fit. If not, what fits is filled in, the rest is initialised with `key`, and a
          warning says what; a backbone alone thus goes into the encoder of a whole model.
        in_channels: channels of the images, where they are not the checkpoint's: the first convolution's weights are
          repeated over them and scaled by their ratio, or summed up for one channel, as in segmentation_models_pytorch.
        key: random key of what is not in the checkpoint; None means `jax.random.key(0)`.

    Returns:
        Variables for `model.apply`: `params`, and `batch_stats` if the model has batch norms.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file cannot be read, or names or shapes do not fit; the message lists all that do not.

    Example:
        >>> import jax.numpy as jnp, numpy as np
        >>> import densezoo as dz
        >>> from densezoo.weights import from_torch
        >>> encoder = dz.PlainEncoder(features=(4,), norm=None)
        >>> arrays = {"inc.double_conv.0.weight": np.zeros((4, 3, 3, 3)), "inc.double_conv.0.bias": np.zeros(4)}
        >>> arrays |= {"inc.double_conv.2.weight": np.zeros((4, 4, 3, 3)), "inc.double_conv.2.bias": np.ones(4)}
        >>> variables = from_torch(encoder, arrays)
        >>> encoder.apply(variables, jnp.ones((1, 2, 2, 3))).features[0][0, 0, 0].tolist()
        [1.0, 1.0, 1.0, 1.0]
    """
    names = read_names(checkpoint)
    channels = in_channels or 3
    slots, ignored = _slots(model, names, channels)
    stem = _stem(model, slots)
    if stem in names and np.ndim(names[stem]) == 4:
        came = np.shape(names[stem])[1]
        if in_channels is None and came != channels:
            channels = came
            slots, ignored = _slots(model, names, channels)
        elif came != channels:
            names[stem] = _spread(_numpy(names[stem]), channels)

    misfit = Misfit(
        names.source,
        expected={slot.name: slot.shape_there for slot in slots if slot.name},
        came={name: tuple(np.shape(array)) for name, array in names.items()},
    )
    values, used = _fill(slots, names, misfit)
    misfit.left_over = [name for name in names if name not in used and not re.fullmatch(ignored, name)]
    if misfit:
        if strict:
            raise ValueError(misfit.message(strict=True))
        warnings.warn(misfit.message(strict=False), stacklevel=2)
    rest = [slot.path for slot in slots if slot.path not in values]
    if rest:
        values |= _initialise(model, rest, channels, jax.random.key(0) if key is None else key)
    return unflatten_dict(values)


class Names(dict[str, Any]):
    """A checkpoint's arrays by name, and where they came from, for messages."""

    def __init__(self, arrays: Mapping[str, Any], source: str):
        super().__init__(arrays)
        self.source = source


def read_names(checkpoint: str | os.PathLike[str] | Mapping[str, Any]) -> Names:
    """The arrays of a file or mapping by their names, without containers and prefixes around them."""
    source = "the checkpoint"
    if isinstance(checkpoint, (str, os.PathLike)):
        source = os.fspath(checkpoint)
        arrays: dict[str, Any] = dict(read_checkpoint(checkpoint))
    elif isinstance(checkpoint, Mapping):
        source = getattr(checkpoint, "source", source)
        arrays = {str(name): array for name, array in open_containers(checkpoint).items() if hasattr(array, "shape")}
    else:
        raise TypeError(f"checkpoint is a path or a mapping of names to arrays, got a {type(checkpoint).__name__}")
    if not arrays:
        raise ValueError(f"{source} holds no arrays")
    while wrapper := next((w for w in _WRAPPERS if all(name.startswith(w) for name in arrays)), None):
        arrays = {name.removeprefix(wrapper): array for name, array in arrays.items()}
    return Names(arrays, source)


def _images(model: nn.Module, channels: int) -> jax.Array:
    # Large enough for every encoder; the parameters do not depend on it.
    side = 2 * max(32, *getattr(model, "encoder", model).reductions)
    return jnp.zeros((1, side, side, channels), jnp.float32)


def _initialise(model: nn.Module, paths: list[Path], channels: int, key: jax.Array) -> dict[Path, jax.Array]:
    """Some of the arrays of `model.init`; only those are computed."""

    def some(key: jax.Array) -> list[jax.Array]:
        variables: dict[Path, Any] = flatten_dict(model.init(key, _images(model, channels)))
        return [variables[path] for path in paths]

    # Runs once, so it is not worth the compiler's optimisation, which would take five times as long.
    once = jax.jit(some, compiler_options={"xla_backend_optimization_level": 0})
    return dict(zip(paths, once(key), strict=True))


def _parts(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that a model is composed of, by the names of their subtrees; "" for an encoder on its own."""
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}  # pyright: ignore
    parts = {k: v for k, v in fields.items() if isinstance(v, nn.Module) and k != "parent"}
    return parts or {"": model}


def _family(module: nn.Module) -> Family | None:
    return next((FAMILIES[cls] for cls in type(module).__mro__ if cls in FAMILIES), None)


def _slots(model: nn.Module, names: Names, channels: int) -> tuple[list[Slot], str]:
    """The model's arrays with their names in the checkpoint, and a pattern of names to ignore."""
    tree: dict[Path, Any] = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), _images(model, channels)))
    parts = _parts(model)
    paths = {part: [path for path in tree if not part or path[1] == part] for part in parts}
    namings = _choose(parts, paths, names)
    slots, ignored = [], [NEVER_NEEDED]
    for part, naming in namings.items():
        for path in paths[part]:
            slots.append(_slot(path, tree[path], naming, 2 if part else 1))
        if naming is not None and naming.ignored:
            ignored.append(naming.ignored)
        if naming is not None and naming.prefix and not part:
            # An encoder on its own, from the checkpoint of a whole model.
            ignored.append(rf"(?!{re.escape(naming.prefix)}).*")
    return slots, "|".join(f"(?:{pattern})" for pattern in ignored)


def _choose(parts: dict[str, nn.Module], paths: dict[str, list[Path]], names: Names) -> dict[str, Naming | None]:
    """For each part the naming of which the checkpoint has most; where it has none, that of the other parts."""
    chosen: dict[str, Naming | None] = {}
    unknown = []
    for part, module in parts.items():
        family = _family(module)
        namings = list(family.namings(module)) if family else []
        start = 2 if part else 1
        found = [sum(_reference(path, naming, start)[0] in names for path in paths[part]) for naming in namings]
        best = found.index(max(found)) if found else None
        chosen[part] = None if best is None else namings[best]
        if best is not None and not found[best]:
            unknown.append((part, namings))
    sources = {naming.source for part, naming in chosen.items() if naming and part not in dict(unknown)}
    for part, namings in unknown:
        chosen[part] = next((naming for naming in namings if naming.source in sources), namings[0])
    return chosen


def _reference(path: Path, naming: Naming | None, start: int) -> tuple[str | None, str]:
    """Name there of the array at `path`, whose module's path begins at `start`, and its kernel's kind."""
    *module, leaf = path[start:]
    if naming is None:
        return None, "conv"
    found = naming.find("/".join(module))
    if found is not None and leaf in LEAVES:
        return f"{found[0]}.{LEAVES[leaf]}", found[1]
    return naming.find("/".join(path[start:])) or (None, "conv")


def _slot(path: Path, array: jax.ShapeDtypeStruct, naming: Naming | None, start: int) -> Slot:
    name, kernel = _reference(path, naming, start)
    axes = tuple(range(array.ndim))
    if path[-1] == "kernel":
        axes = KERNELS["dense" if array.ndim == 2 else kernel]
    return Slot(path, array.shape, array.dtype, name, axes)


def _stem(model: nn.Module, slots: list[Slot]) -> str:
    """The name of the encoder's first convolution, "" if that is unknown."""
    parts = _parts(model)
    part = "encoder" if "encoder" in parts else ""
    family = _family(parts[part]) if part in parts else None
    if family is None or family.stem is None:
        return ""
    path = ("params", *([part] if part else []), *family.stem.split("/"), "kernel")
    return next((slot.name for slot in slots if slot.path == path and slot.name), "")


def _spread(kernel: np.ndarray, channels: int) -> np.ndarray:
    """An OIHW kernel for another number of input channels: summed up for one, else repeated and scaled by the ratio."""
    if channels == 1:
        return kernel.sum(1, keepdims=True, dtype=np.float32)
    repeated = kernel[:, np.arange(channels) % kernel.shape[1]]
    return repeated.astype(np.float32) * np.float32(kernel.shape[1] / channels)


def _fill(slots: list[Slot], names: Names, misfit: Misfit) -> tuple[dict[Path, jax.Array], set[str]]:
    """The arrays that fit, by their paths here, and the names that were needed; `misfit` gets the rest."""
    values: dict[Path, np.ndarray] = {}
    used: set[str] = set()
    for slot in slots:
        if slot.name is None:
            misfit.unnamed.append("/".join(slot.path))
        elif slot.name not in names:
            misfit.missing.append(slot.name)
        else:
            used.add(slot.name)
            array = _numpy(names[slot.name])
            if array.shape != slot.shape_there or not jnp.issubdtype(array.dtype, jnp.floating):
                misfit.wrong.append(
                    f"{slot.name} came {array.shape} {array.dtype}, expected {slot.shape_there} {np.dtype(slot.dtype)}"
                )
            else:
                # A copy: an array of the caller's must not be the parameter itself.
                values[slot.path] = array.transpose(slot.axes).astype(slot.dtype, order="C", copy=True)
    used |= _fold_biases(slots, names, values)
    return {path: jnp.asarray(value) for path, value in values.items()}, used


def _fold_biases(slots: list[Slot], names: Names, values: dict[Path, np.ndarray]) -> set[str]:
    """Takes biases that the model lacks off the running means: norm(x + bias, mean) = norm(x, mean - bias)."""
    paths = {slot.path for slot in slots}
    folded = set()
    for slot in slots:
        *module, leaf = slot.path[1:]
        mean = ("batch_stats", *module[:-1], "norm", "mean")
        if leaf != "kernel" or slot.name is None or ("params", *module, "bias") in paths or mean not in values:
            continue
        name = slot.name.removesuffix("weight") + "bias"
        if name in names and np.shape(names[name]) == values[mean].shape:
            values[mean] = values[mean] - _numpy(names[name]).astype(values[mean].dtype)
            folded.add(name)
    return folded


def _numpy(array: Any) -> np.ndarray:
    if hasattr(array, "detach"):
        array = array.detach().cpu()
        try:
            return array.numpy()
        except TypeError:  # bfloat16, which NumPy itself does not have
            return array.float().numpy()
    return np.asarray(array)
