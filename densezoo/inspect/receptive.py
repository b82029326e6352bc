"""The receptive field of each layer of a model: in theory, and as its gradients have it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float

from densezoo.inputs import check_collections, example_inputs
from densezoo.inspect.intervals import Reach, Value
from densezoo.inspect.reach import run
from densezoo.inspect.walk import Path, as_reference, module_calls
from densezoo.types import Pyramid


@dataclasses.dataclass(frozen=True)
class ReceptiveField:
    """The part of the image that the middle position of a layer's output depends on. It ends at the image's border.

    Attributes:
        path: names of modules, from the outermost inwards; for an encoder's map, its number is the last name.
        shape: shape of the output, NHWC.
        rows: first and last row of the image, both included.
        columns: first and last column, both included.
        whole: whether every position depends on all rows and columns, as after global pooling or attention, or
            because the image is smaller than the receptive field.
    """

    path: Path
    shape: tuple[int, ...]
    rows: tuple[int, int]
    columns: tuple[int, int]
    whole: bool

    @property
    def name(self) -> str:
        """The path as text."""
        return "/".join(self.path)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rows[1] - self.rows[0] + 1, self.columns[1] - self.columns[0] + 1


@dataclasses.dataclass(frozen=True)
class ReceptiveFields:
    """The receptive fields of a model's layers, in the order in which they run. `print` shows a table.

    Attributes:
        layers: the receptive fields. The last is that of the model's output.
        image_shape: shape of the image, NHWC.
    """

    layers: tuple[ReceptiveField, ...]
    image_shape: tuple[int, ...]

    def __getitem__(self, name: str) -> ReceptiveField:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(f"no layer {name!r}; the layers are {', '.join(layer.name for layer in self.layers)}")

    def __str__(self) -> str:
        names = [layer.name or "output" for layer in self.layers]
        width = max(len("layer"), *map(len, names))
        lines = [f"{'layer':<{width}}  {'output':<12}  receptive field"]
        lines.append("-" * len(lines[0]))
        for name, layer in zip(names, self.layers, strict=True):
            output, field = "x".join(map(str, layer.shape[1:3])), extent(layer, self.image_shape[1:3])
            lines.append(f"{name:<{width}}  {output:<12}  {field}")
        size = "x".join(map(str, self.image_shape[1:3]))
        return "\n".join([*lines, f"image: {size}. {NOTE}"])


NOTE = "The receptive field is that of the output's middle, and is cut off at the border of the image."


def extent(field: ReceptiveField, image_size: Sequence[int]) -> str:
    """The size of a receptive field in words: height x width, or "the whole image"."""
    if field.whole or field.size == tuple(image_size):
        return "the whole image"
    return "x".join(map(str, field.size))


def receptive_fields(
    model: nn.Module, image_shape: Sequence[int] = (512, 512, 3), *, depth: int = 2
) -> ReceptiveFields:
    """Computes which part of the image each layer depends on, without running the model.

    The model is traced, and the rows and columns that each number depends on are followed through its operations:
    strides, dilation, pooling, resizing, skips. What no rule covers depends on everything, so a receptive field may be
    smaller than stated, but never larger. A receptive field is cut off at the border of the image: use a larger image
    for the full size.

    Args:
        model: a model or encoder that takes images and returns maps.
        image_shape: (height, width, channels) of the image, with or without a leading batch axis.
        depth: the number of nested levels to list.

    Raises:
        TypeError: if the model is not a Flax module.
        ValueError: if the shape is not that of an image.

    Example:
        >>> import densezoo as dz
        >>> from densezoo.inspect import receptive_fields
        >>> fields = receptive_fields(dz.create_encoder("vgg16"), (512, 512, 3))
        >>> fields.layers[-1].size
        (212, 212)
    """
    _check_module(model)
    if np.ndim(image_shape) != 1 or len(image_shape) not in (3, 4) or min(image_shape) < 1:
        is_array = hasattr(image_shape, "shape")
        got = f"an array of shape {image_shape.shape}" if is_array else repr(image_shape)  # pyright: ignore
        raise ValueError(
            f"image_shape must be (height, width, channels), with or without a leading batch axis; got {got}"
        )
    shape = tuple(map(int, image_shape))[-3:]
    inputs = example_inputs(model, jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    names: dict[str, Path] = {}

    def label(path: Path, result: Any) -> Any:
        """Names the maps of a layer in the traced program."""
        if isinstance(result, Pyramid):
            maps = [label((*path, str(number)), x) for number, x in enumerate(result.maps)]
            return dataclasses.replace(result, maps=tuple(maps))
        if hasattr(result, "ndim") and result.ndim == 4:
            names["/".join(path)] = path
            return checkpoint_name(result, "/".join(path))
        return result

    def visit(module: nn.Module, call: Any, args: Any, kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        return label(module.path, result) if len(module.path) <= depth and args else result

    with as_reference(model) as model, module_calls(visit):
        variables = jax.eval_shape(model.init, jax.random.key(0), *inputs)
        program = jax.make_jaxpr(lambda *arguments: model.apply(*arguments))(variables, *inputs)
    are_images = [x.shape == inputs[0].shape for x in inputs]
    rows, columns = (_spans(program, axis, shape[axis], are_images) for axis in (0, 1))
    layers = []
    for name in rows:
        (output, vertical, all_rows), (_, horizontal, all_columns) = rows[name], columns[name]
        layers.append(ReceptiveField(names[name], output, vertical, horizontal, all_rows and all_columns))
    return ReceptiveFields(tuple(layers), (1, *shape))


def _check_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(
            "the model must be a Flax module, such as dz.create_encoder('resnet18') or dz.create_model('unet'); got"
            f" {model!r}"
        )


Span = tuple[tuple[int, ...], tuple[int, int], bool]
"""Shape of an output, the first and last row that its middle depends on, and whether every position needs all rows."""


def _spans(program: Any, axis: int, length: int, are_images: Sequence[bool]) -> dict[str, Span]:
    """What each named map of a program depends on, along one axis of the images among its last inputs."""
    spans: dict[str, Span] = {}

    def note(name: str, value: Value, shape: tuple[int, ...]) -> None:
        if value is not None:
            at = len(value.first) // 2
            every = bool((value.first == 0).all() and (value.last == length - 1).all())
            spans[name] = shape, (int(value.first[at]), int(value.last[at])), every

    positions = np.arange(length)
    weights: list[Value] = [None] * (len(program.jaxpr.invars) - len(are_images))
    inputs = [*weights, *(Reach(1 + axis, positions, positions) if image else None for image in are_images)]
    run(program.jaxpr, inputs, program.consts, note)
    return spans


def effective_receptive_field(
    model: nn.Module,
    variables: Any,
    images: Float[Array, "b h w c"],
    layer: str = "",
    *,
    position: tuple[int, int] | None = None,
    key: Any = None,
) -> Float[np.ndarray, "h w"]:
    """Measures how much each pixel moves one position of a layer: the effective receptive field.

    The value of a pixel is the mean magnitude, over images and channels, of the gradient of the layer's output at that
    position with respect to the pixel. Random signs combine the output's channels.

    Args:
        model: a model or encoder that takes images.
        variables: its variables.
        images: normalised images, whose gradients are averaged.
        layer: name of a layer as in `receptive_fields`, such as "encoder/layer2". Empty for the model's output.
        position: (row, column) in the layer's output. None for the middle.
        key: random key of the signs. None for `jax.random.key(0)`.

    Returns:
        Magnitudes of the size of an image that sum to 1; zeros if the output does not depend on the image.

    Raises:
        TypeError: if the model is not a Flax module, or the variables are not a dictionary.
        ValueError: if the variables have no `params`, the layer does not exist or has no map of shape (b, h, w, c), or
            the position is outside of it.

    Paper:
        Luo et al., Understanding the Effective Receptive Field in Deep Convolutional Neural Networks (2016).

    Example:
        >>> import jax, jax.numpy as jnp
        >>> import densezoo as dz
        >>> from densezoo.inspect import effective_receptive_field
        >>> encoder = dz.PlainEncoder((4, 8))
        >>> images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
        >>> variables = encoder.init(jax.random.key(1), images)
        >>> field = effective_receptive_field(encoder, variables, images, "block0")
        >>> field.shape, int((field > 0).sum())  # two 3x3 convolutions
        ((32, 32), 25)
    """
    _check_module(model)
    check_collections(variables)
    key = jax.random.key(0) if key is None else key

    def output(variables: Any, images: Any) -> Any:
        # Flax returns the captured outputs, also from within blocks that are recomputed in the backward pass.
        with as_reference(model) as plain:
            _, state = plain.apply(variables, images, capture_intermediates=True, mutable=["intermediates"])
        captured: Any = flatten_dict(state["intermediates"])
        found: dict[str, Any] = {}
        for (*path, _), results in captured.items():
            name, result = "/".join(path), results[-1]
            maps = result.maps if isinstance(result, Pyramid) else ()
            found |= {f"{name}/{number}".lstrip("/"): x for number, x in enumerate(maps)}
            found[name] = result
        if getattr(found.get(layer), "ndim", 0) != 4:
            maps = [name for name, x in found.items() if name and getattr(x, "ndim", 0) == 4]
            raise ValueError(f"no map of shape (b, h, w, c) is called {layer!r}; there are {', '.join(maps)}")
        return found[layer]

    shape = jax.eval_shape(output, variables, images).shape
    row, column = position if position is not None else (shape[1] // 2, shape[2] // 2)
    if not (0 <= row < shape[1] and 0 <= column < shape[2]):
        raise ValueError(f"position {position} is outside of {layer or 'the output'}, which is {shape[1]}x{shape[2]}")
    signs = jax.random.rademacher(key, (shape[0], shape[3]), jnp.float32)

    def moved(images: Any, variables: Any) -> Any:
        return (output(variables, images)[:, row, column] * signs).sum()

    gradient = jax.jit(jax.grad(moved))(images, variables)
    field = np.abs(np.asarray(gradient, np.float64)).mean((0, 3))
    return field / (field.sum() or 1)
