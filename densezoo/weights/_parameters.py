"""The correspondence of a model's arrays to a reference's: paths in densezoo, names and axes in the reference."""

import dataclasses
from collections.abc import Container, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict

from densezoo.compiling import jitted_once
from densezoo.encoders import Encoder
from densezoo.inputs import example_inputs
from densezoo.messages import shortened
from densezoo.models import COMPOSITIONS
from densezoo.naming import COLUMN, KERNELS, LEAVES, Named, Naming, spelled_out

Path = tuple[str, ...]
"""The path of an array in the variables; the collection is first."""

AUXILIARY = "auxiliary"
"""The part of a model that no checkpoint contains."""


@dataclasses.dataclass(frozen=True)
class Parameter:
    """An array of the model, and its source in the reference.

    Attributes:
        path: its path in the variables; the collection is first.
        shape: its shape in densezoo.
        dtype: its dtype in densezoo.
        name: its name in the reference; None if the reference has no such array.
        axes: the reference's axis for each axis in densezoo.
        ones: number of axes of size one at the end of the reference's shape.
        offset: a number that is added to the reference's values.
    """

    path: Path
    shape: tuple[int, ...]
    dtype: Any
    name: str | None
    axes: tuple[int, ...]
    ones: int = 0
    offset: float = 0.0

    @property
    def shape_there(self) -> tuple[int, ...]:
        """The required shape of the reference's array."""
        return tuple(self.shape[self.axes.index(axis)] for axis in range(len(self.shape))) + (1,) * self.ones

    def from_there(self, array: np.ndarray) -> np.ndarray:
        """Converts the reference's array to densezoo's; a copy."""
        here = array.reshape(array.shape[: len(self.shape)]).transpose(self.axes)
        # The parameter must not be the caller's own array.
        here = here.astype(self.dtype, order="C", copy=True)
        return here + np.asarray(self.offset, here.dtype) if self.offset else here

    def to_there(self, array: np.ndarray) -> np.ndarray:
        """Converts densezoo's array to the reference's."""
        if self.offset:
            array = np.maximum(array - np.asarray(self.offset, array.dtype), 0)  # a variance
        return array.transpose(np.argsort(self.axes)).reshape(self.shape_there)


def inputs_for(model: nn.Module, channels: int) -> tuple[jax.ShapeDtypeStruct, ...]:
    """Inputs to initialise a model with: large enough for it; the parameters do not depend on the size."""
    encoder = parts_of(model).get("encoder", model)
    side = max(64, 2 * encoder.reductions[-1], encoder.min_size) if isinstance(encoder, Encoder) else 64
    return example_inputs(model, jax.ShapeDtypeStruct((1, side, side, channels), jnp.float32))


def shapes_of(model: nn.Module, channels: int) -> dict[Path, jax.ShapeDtypeStruct]:
    """The model's arrays by path, without computing them."""
    shapes: dict[Path, Any] = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), *inputs_for(model, channels)))
    return shapes


def initialise(model: nn.Module, paths: list[Path], channels: int, key: jax.Array) -> dict[Path, jax.Array]:
    """Some of the arrays of `model.init`; only these are computed."""

    def some(key: jax.Array) -> list[jax.Array]:
        inputs = [jnp.zeros(x.shape, x.dtype) for x in inputs_for(model, channels)]
        variables: dict[Path, Any] = flatten_dict(model.init(key, *inputs))
        return [variables[path] for path in paths]

    return dict(zip(paths, jitted_once(some)(key), strict=True))


def parts_of(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that a model is composed of, by the names of their subtrees; "" for a single encoder.

    Auxiliary heads are excluded: they are only for training, and no reference has them.
    """
    fields = {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}  # pyright: ignore
    parts = {k: v for k, v in fields.items() if isinstance(v, nn.Module) and k not in ("parent", AUXILIARY)}
    return parts or {"": model}


def namings_of(module: nn.Module) -> list[Naming]:
    """The namings of a module's arrays in references; empty if the module defines none."""
    return list(module.reference_names()) if isinstance(module, Named) else []


def paths_of(part: str, tree: Mapping[Path, Any]) -> list[Path]:
    """The paths of a part's arrays."""
    return [path for path in tree if not part or path[1] == part]


def epsilon_of(module: nn.Module) -> float | None:
    """The epsilon of a module's batch norms; None if it has none, or if it is unknown."""
    norm = getattr(module, "norm", None)
    try:
        return None if norm is None else getattr(norm(), "epsilon", None)
    except TypeError:  # a user-defined function
        return None


def parameters_of(
    part: str, tree: Mapping[Path, Any], naming: Naming | None, module: nn.Module | None = None
) -> list[Parameter]:
    """A part's arrays with their names in the reference; `module` is the part, whose norms may differ from its."""
    parameters = []
    epsilon = None if naming is None or naming.epsilon is None or module is None else epsilon_of(module)
    # norm(x; var, theirs) = norm(x; var + theirs - ours, ours).
    offset = 0.0 if epsilon is None or naming is None else (naming.epsilon or 0.0) - epsilon
    for path in paths_of(part, tree):
        array = tree[path]
        name, kernel = _reference(path, naming, 2 if part else 1)
        axes = tuple(range(len(array.shape)))
        if path[-1] == "kernel":
            axes = KERNELS["dense" if len(array.shape) == 2 else kernel]
        ones = 2 if kernel == COLUMN else 0
        added = offset if path[0] == "batch_stats" and path[-1] == "var" else 0.0
        parameters.append(Parameter(path, tuple(array.shape), array.dtype, name, axes, ones, added))
    return parameters


def expected_names(parts: Mapping[str, nn.Module], tree: Mapping[Path, Any]) -> dict[str, list[set[str]]]:
    """For each part, the names of its arrays in each of its namings."""
    return {
        part: [
            {name for p in parameters_of(part, tree, naming) if p.name for name in spelled_out(p.name)}
            for naming in namings_of(module)
        ]
        for part, module in parts.items()
    }


def whole(parameters: list[Parameter], tree: Mapping[Path, Any]) -> list[Parameter]:
    """The arrays of all parts, and arrays without a name for those that belong to no part."""
    owned = {p.path for p in parameters}
    others = [path for path in tree if path not in owned and path[1] != AUXILIARY]
    return parameters + [Parameter(path, tuple(tree[path].shape), tree[path].dtype, None, ()) for path in others]


def choose(
    parts: Mapping[str, nn.Module], expected: Mapping[str, list[set[str]]], names: Container[str]
) -> dict[str, Naming | None]:
    """For each part, the naming with the most matches in `names`; without a match, that of the other parts.

    `expected` is the result of `expected_names`.
    """
    chosen: dict[str, Naming | None] = {}
    unknown = []
    for part, module in parts.items():
        namings = namings_of(module)
        found = [sum(name in names for name in known) for known in expected[part]]
        best = found.index(max(found)) if found else None
        chosen[part] = None if best is None else namings[best]
        if best is not None and not found[best]:
            unknown.append((part, namings))
    sources = {naming.source for part, naming in chosen.items() if naming and part not in dict(unknown)}
    for part, namings in unknown:
        chosen[part] = next((naming for naming in namings if naming.source in sources), namings[0])
    return chosen


def stem_path(model: nn.Module) -> Path | None:
    """The path of the kernel of the first convolution, if known."""
    parts = parts_of(model)
    part = "encoder" if "encoder" in parts else ""
    stem: str | None = getattr(parts.get(part), "stem", None)
    return None if stem is None else ("params", *([part] if part else []), *stem.split("/"), "kernel")


def differences(model: nn.Module, tree: Mapping[Path, Any]) -> list[str]:
    """The mismatches between a tree of arrays and the model, one line each, for any number of input channels.

    Only densezoo's models and encoders can be checked.

    Raises:
        ValueError: if the model has far more layers than such a tree: a small file can describe a million of them.
    """
    if not isinstance(model, (*COMPOSITIONS, Encoder)):
        return []
    left = 100 + 20 * len(tree)

    def count(function: Any, args: Any, keywords: Any, _: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise ValueError(f"it has far more layers than its {len(tree)} arrays could fill")
        return function(*args, **keywords)

    def mismatched(expected: Mapping[Path, Any]) -> dict[Path, tuple[int, ...]]:
        return {p: array.shape for p, array in expected.items() if p in tree and array.shape != tuple(tree[p].shape)}

    with nn.intercept_methods(count):
        expected = shapes_of(model, 3)
        wrong = mismatched(expected)
        channels = _channels_of(wrong, tree, stem_path(model))
        if channels and not mismatched(shapes_of(model, channels)):
            wrong = {}
    lines = [f"{'/'.join(path)} is missing" for path in expected if path not in tree]
    lines += [f"{'/'.join(path)} is unexpected" for path in tree if path not in expected]
    return lines + [f"{'/'.join(p)} is {tuple(tree[p].shape)}, expected {shape}" for p, shape in wrong.items()]


def image_channels(model: nn.Module, variables: Any) -> int:
    """The number of channels of a model's images, from its variables; 3 for a model of your own modules."""
    tree: dict[Path, Any] = flatten_dict(dict(variables))
    if not isinstance(model, (*COMPOSITIONS, Encoder)):
        return 3
    expected = shapes_of(model, 3)
    wrong = {p: x.shape for p, x in expected.items() if p in tree and x.shape != tuple(tree[p].shape)}
    return _channels_of(wrong, tree, stem_path(model)) or 3


def _channels_of(wrong: Mapping[Path, tuple[int, ...]], tree: Mapping[Path, Any], stem: Path | None) -> int:
    """The number of image channels that would explain a kernel that differs from the one for 3; 0 if none.

    It is that of the first convolution if it is known and differs, or else the first such kernel.
    """
    kernel = stem if stem in wrong else next((path for path in wrong if path[-1] == "kernel"), None)
    if kernel is None or tree[kernel].ndim != len(wrong[kernel]):
        return 0
    channels, rest = divmod(3 * tree[kernel].shape[-2], wrong[kernel][-2])
    return 0 if rest else channels


def check_kinds(model: Any, variables: Any = None) -> None:
    """Rejects a model that is not a Linen module, and variables that are not nested dictionaries.

    Raises:
        TypeError: if they are swapped, or belong to Flax NNX.
    """
    if isinstance(model, nnx.Module):
        raise TypeError(
            f"expected a Linen model, got the NNX module {type(model).__name__}: pass the model that dz.to_nnx was"
            " given, with dz.from_nnx(module) as its variables"
        )
    if not isinstance(model, nn.Module):
        raise TypeError(f"the model comes first, then its variables; got a {type(model).__name__} as the model")
    if isinstance(variables, nnx.Module | nnx.State):
        raise TypeError(
            f"expected the model's variables, got a {type(variables).__name__}: dz.from_nnx(module) gives them"
        )
    if variables is not None and not isinstance(variables, Mapping):
        raise TypeError(f"expected the model's variables, nested dictionaries, got a {type(variables).__name__}")


def check_variables(model: nn.Module, variables: Any) -> None:
    """Rejects objects that are not a model, or variables of another model.

    Raises:
        TypeError: if the model and the variables are swapped, or belong to Flax NNX.
        ValueError: if the variables have no `params`, or belong to another model.
    """
    check_kinds(model, variables)
    if "params" not in variables:
        raise ValueError(f"expected variables with params and batch_stats, got {sorted(variables)}")
    if lines := differences(model, flatten_dict(dict(variables))):
        raise ValueError(f"these are not the variables of the model: {shortened(lines)}")


def _reference(path: Path, naming: Naming | None, start: int) -> tuple[str | None, str]:
    """The reference's name for the array at `path`, whose module's path starts at `start`, and its kernel's kind."""
    *module, leaf = path[start:]
    if naming is None:
        return None, "conv"
    found = naming.find("/".join(module))
    if found is not None and leaf in LEAVES:
        return f"{found[0]}.{LEAVES[leaf]}", found[1]
    return naming.find("/".join(path[start:])) or (None, "conv")
