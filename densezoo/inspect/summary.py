"""A model at a glance: for each of its layers the shape of its result, its parameters, FLOPs and bytes."""

import collections
import dataclasses
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from densezoo.inspect.walk import Path, as_reference, traced, walk
from densezoo.types import Dtype, Pyramid


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module of the model, with all that is in it.

    Attributes:
        path: names of modules, from the model inwards; empty for the model itself.
        shapes: of the arrays that it gives; none for a part that did not run, such as heads for training.
        parameters: how many numbers it learns.
        flops: of its convolutions and matrix products, two for each multiplication and addition.
        bytes: of the arrays that it gives.
    """

    path: Path
    shapes: tuple[tuple[int, ...], ...]
    parameters: int
    flops: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The layers of a model, each before those in it; `print` shows a table.

    Attributes:
        layers: the first is the model as a whole.
        image_shape: of the images, NHWC.
        parameter_bytes: of all parameters and running statistics.
    """

    layers: tuple[Layer, ...]
    image_shape: tuple[int, ...]
    parameter_bytes: int

    @property
    def rooms(self) -> tuple[Layer, ...]:
        """The old name of `layers`."""
        warnings.warn("Summary.rooms has been renamed to layers", DeprecationWarning, stacklevel=2)
        return self.layers

    def __str__(self) -> str:
        rows = [("module", "result", "parameters", "GFLOPs", "MiB")]
        for layer in self.layers:
            name = "  " * len(layer.path) + (layer.path[-1] if layer.path else f"images {_text([self.image_shape])}")
            counts = f"{layer.parameters:,}", f"{layer.flops / 1e9:.3f}", f"{layer.bytes / 2**20:.2f}"
            rows.append((name, _text(layer.shapes) or "-", *counts))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = [
            "  ".join(f"{x:<{w}}" if i < 2 else f"{x:>{w}}" for i, (x, w) in enumerate(zip(row, widths, strict=True)))
            for row in rows
        ]
        lines.insert(1, "-" * len(lines[0]))
        return "\n".join([*lines, f"parameters and statistics: {self.parameter_bytes / 2**20:.2f} MiB"])


def summary(
    model: nn.Module, image_shape: Sequence[int] = (1, 256, 256, 3), *, depth: int = 2, dtype: Dtype = jnp.float32
) -> Summary:
    """Lists the layers of a model without running it.

    FLOPs are those of the architecture as one would write it down (`impl="reference"`): what the fast implementation
    leaves out is counted.

    Args:
        model: a model, an encoder, or any other module that takes images.
        image_shape: (batch, height, width, channels), or without the batch; or images, whose `dtype` then counts.
        depth: how many modules deep to go.
        dtype: of the images.

    Raises:
        ValueError: a shape that is not that of images.

    Example:
        >>> import densezoo as dz
        >>> table = summary(dz.create_model("unet", "resnet18"), (224, 224, 3))
        >>> table.layers[0].parameters, table.layers[0].shapes
        (14328209, ((1, 224, 224, 1),))
    """
    if hasattr(image_shape, "shape"):  # images, which have both
        image_shape, dtype = tuple(image_shape.shape), image_shape.dtype  # pyright: ignore[reportAttributeAccessIssue]
    shape = (1, *image_shape) if len(image_shape) == 3 else tuple(image_shape)
    if len(shape) != 4 or min(shape) < 1:
        raise ValueError(f"image_shape is (batch, height, width, channels) or without the batch; got {image_shape}")
    images = jax.ShapeDtypeStruct(shape, dtype)
    results: dict[Path, Any] = {}

    def note(module: nn.Module, call: Any, args: Any, kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        if args or kwargs:  # what takes nothing only holds weights
            results[module.path] = result.maps if isinstance(result, Pyramid) else result
        return result

    with as_reference(model) as model:
        variables = jax.eval_shape(model.init, jax.random.key(0), images)
        # The results are those of tracing, which have shapes.
        program = traced(model.apply, variables, images, visit=note)
    flops: collections.Counter[Path] = collections.Counter()
    for step in walk(program):
        path = _innermost(step.scopes, results)
        count = step.times * _flops(step.equation)
        flops.update({path[:end]: count for end in range(len(path) + 1)})
    parameters: collections.Counter[Path] = collections.Counter()
    arrays: Any = flatten_dict(variables.get("params", {}))
    for path, array in arrays.items():
        parameters.update({path[:end]: array.size for end in range(len(path))})
    # A part that has weights and does not run is one for training, such as the auxiliary heads.
    results |= {path: () for path in parameters if len(path) == 1 and path not in results}
    layers = []
    for path in _ordered(path for path in results if len(path) <= depth):
        given = [leaf for leaf in jax.tree.leaves(results[path]) if hasattr(leaf, "shape")]
        shapes = tuple(tuple(array.shape) for array in given)
        size = sum(array.size * array.dtype.itemsize for array in given)
        layers.append(Layer(path, shapes, parameters[path], flops[path], size))
    weights = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(variables))
    return Summary(tuple(layers), shape, weights)


def _ordered(paths: Iterator[Path]) -> list[Path]:
    """Each module before those in it, which ran first; otherwise as they ran."""
    children: dict[Path, list[Path]] = {}
    for path in paths:
        children.setdefault(path[:-1] if path else ("",), []).append(path)

    def walk(path: Path) -> list[Path]:
        return [path, *(inner for child in children.get(path, []) if child for inner in walk(child))]

    return walk(())


def _flops(equation: Any) -> int:
    """Of a convolution or a matrix product, 0 for anything else."""
    operands: list[Any] = [variable.aval for variable in equation.invars]
    results: list[Any] = [variable.aval for variable in equation.outvars]
    if equation.primitive.name == "conv_general_dilated":
        kernel, layout = operands[1].shape, equation.params["dimension_numbers"]
        # Every number of the result sums over all of a kernel's numbers for its output channel; in a transposed
        # convolution most of them would meet the zeros between the input's numbers.
        zeros = math.prod(equation.params["lhs_dilation"])
        return 2 * results[0].size * math.prod(kernel) // kernel[layout.rhs_spec[0]] // zeros
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * results[0].size * math.prod(operands[0].shape[axis] for axis in contracted)
    return 0


def _innermost(scopes: Path, modules: dict[Path, Any]) -> Path:
    """The innermost module that these names lead to."""
    path: Path = ()
    for name in scopes:
        if (*path, name) in modules:
            path = (*path, name)
    return path


def _text(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)
