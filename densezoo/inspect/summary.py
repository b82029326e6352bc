"""A summary of a model: output shape, parameters, FLOPs and bytes of each layer."""

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

from densezoo.heads import AnchorOutputs, PointOutputs
from densezoo.inputs import example_inputs
from densezoo.inspect.walk import Path, as_reference, inference_method, traced, walk
from densezoo.types import Dtype, Pyramid


@dataclasses.dataclass(frozen=True)
class Layer:
    """A module of a model, including its submodules.

    Attributes:
        path: names of modules, from the outermost inwards; empty for the model itself.
        shapes: shapes of its outputs, of all calls if it is shared by several maps; empty for a part that did not run,
            such as auxiliary heads.
        parameters: number of trainable parameters.
        flops: FLOPs of its convolutions and matrix products, two per multiply-add.
        bytes: size of its outputs in bytes.
    """

    path: Path
    shapes: tuple[tuple[int, ...], ...]
    parameters: int
    flops: int
    bytes: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """The layers of a model, each before its submodules. `print` shows a table.

    Attributes:
        layers: the layers. The first is the whole model.
        image_shape: shape of the images, NHWC.
        parameter_bytes: size of all parameters and running statistics in bytes.
    """

    layers: tuple[Layer, ...]
    image_shape: tuple[int, ...]
    parameter_bytes: int

    @property
    def rooms(self) -> tuple[Layer, ...]:
        """Deprecated name of `layers`."""
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
    """Lists the layers of a model without running it. For a detector, they are those of `dz.detect`.

    FLOPs are those of the plain form of the architecture (`impl="reference"`), including the work that the optimised
    form avoids.

    Args:
        model: a model, an encoder, or any other module that takes images.
        image_shape: (batch, height, width, channels), or without the batch. Or images, which also determine `dtype`.
        depth: the number of nested levels to list.
        dtype: dtype of the images.

    Raises:
        ValueError: if the shape is not that of images.

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
        raise ValueError(
            f"image_shape must be (height, width, channels), with or without a leading batch axis; got {image_shape}"
        )
    inputs = example_inputs(model, jax.ShapeDtypeStruct(shape, dtype))
    results: dict[Path, Any] = {}

    def note(module: nn.Module, call: Any, args: Any, kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        if args or kwargs:  # a module without inputs only holds weights
            results.setdefault(module.path, []).append(_outputs(result))
        return result

    def predict(variables: Any, *inputs: Any) -> Any:
        result = model.apply(variables, *inputs, method=inference_method(model))
        results[()] = [_outputs(result)]
        return result

    with as_reference(model) as model:
        variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        # The results are tracers, which have shapes.
        program = traced(predict, variables, *inputs, visit=note)
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


def _outputs(result: Any) -> Any:
    """What a module computes from its input: the maps of a pyramid, a detector's predictions without its anchors."""
    if isinstance(result, Pyramid):
        return result.maps
    return dataclasses.replace(result, grid=None) if isinstance(result, (AnchorOutputs, PointOutputs)) else result


def _ordered(paths: Iterator[Path]) -> list[Path]:
    """Sorts each module before its submodules, which ran first, and otherwise in the order of execution."""
    children: dict[Path, list[Path]] = {}
    for path in paths:
        children.setdefault(path[:-1] if path else ("",), []).append(path)

    def walk(path: Path) -> list[Path]:
        return [path, *(inner for child in children.get(path, []) if child for inner in walk(child))]

    return walk(())


def _flops(equation: Any) -> int:
    """FLOPs of a convolution or a matrix product, 0 for anything else."""
    operands: list[Any] = [variable.aval for variable in equation.invars]
    results: list[Any] = [variable.aval for variable in equation.outvars]
    if equation.primitive.name == "conv_general_dilated":
        kernel, layout = operands[1].shape, equation.params["dimension_numbers"]
        # Every number of the result sums over all of a kernel's numbers for its output channel. In a transposed
        # convolution, most of them would be multiplied with the zeros between the input's numbers.
        zeros = math.prod(equation.params["lhs_dilation"])
        return 2 * results[0].size * math.prod(kernel) // kernel[layout.rhs_spec[0]] // zeros
    if equation.primitive.name == "dot_general":
        (contracted, _), _ = equation.params["dimension_numbers"]
        return 2 * results[0].size * math.prod(operands[0].shape[axis] for axis in contracted)
    return 0


def _innermost(scopes: Path, modules: dict[Path, Any]) -> Path:
    """The innermost module on a path of names."""
    path: Path = ()
    for name in scopes:
        if (*path, name) in modules:
            path = (*path, name)
    return path


def _text(shapes: Sequence[tuple[int, ...]]) -> str:
    """The shapes; of more than three, as a pyramid has, the first and the last."""
    texts = ["x".join(map(str, shape)) for shape in shapes]
    return ", ".join(texts) if len(texts) <= 3 else f"{texts[0]} ... {texts[-1]} ({len(texts)})"
