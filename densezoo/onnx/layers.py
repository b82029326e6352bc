"""Operations with weights, and those of densezoo that are one operation in ONNX."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from densezoo.onnx.graph import Graph, Tensor
from densezoo.onnx.shapes import counted

NCHW = (0, 3, 1, 2)


def convolution(graph: Graph, equation: Any, x: Tensor, kernel: Tensor) -> Tensor:
    """A convolution, with groups, dilation, and zeros between the pixels."""
    p, out = equation.params, equation.outvars[0].aval
    numbers = p["dimension_numbers"]
    if p["batch_group_count"] != 1:
        raise NotImplementedError("ONNX has no convolutions with batch groups")
    source, weights = graph.read(x, numbers.lhs_spec), graph.read(kernel, numbers.rhs_spec)
    groups, dilations, strides = p["feature_group_count"], p["rhs_dilation"], p["window_strides"]
    pads = [pair[side] for side in (0, 1) for pair in p["padding"]]
    if any(spacing != 1 for spacing in p["lhs_dilation"]):
        if kernel.known is None or any(stride != 1 for stride in strides):
            raise NotImplementedError("ONNX has no transposed convolutions with strides, or with a computed kernel")
        array = np.transpose(kernel.known, numbers.rhs_spec)
        array = np.flip(array, tuple(range(2, array.ndim)))
        array = array.reshape(groups, -1, *array.shape[1:]).swapaxes(1, 2)
        array = array.reshape(-1, *array.shape[2:])
        reach = [(n - 1) * step for n, step in zip(array.shape[2:], dilations, strict=True)] * 2
        name = graph.add(
            "ConvTranspose", source, array, group=groups, strides=list(p["lhs_dilation"]), dilations=list(dilations),
            pads=[a - b for a, b in zip(reach, pads, strict=True)],
        )  # fmt: skip
    else:
        name = graph.add(
            "Conv", source, weights, group=groups, strides=list(strides), dilations=list(dilations), pads=pads
        )
    return graph.tensor(name, out, numbers.out_spec)


def product(graph: Graph, equation: Any, a: Tensor, b: Tensor) -> Tensor:
    """A matrix product, for every combination of other axes."""
    out = equation.outvars[0].aval
    (a_sum, b_sum), (a_batch, b_batch) = equation.params["dimension_numbers"]
    a_free, b_free = (
        [axis for axis in range(len(x.shape)) if axis not in (*summed, *batch)]
        for x, summed, batch in ((a, a_sum, a_batch), (b, b_sum, b_batch))
    )
    if a.known is not None and len(a.shape) == 2 and not a_batch and b.known is None:
        # A constant matrix comes second.
        order = [*range(len(a_free), len(out.shape)), *range(len(a_free))]
        swapped = Tensor(tuple(out.shape[i] for i in order), out.dtype)
        result = _by_matrix(graph, b, a, b_free, b_sum, a_free, a_sum, swapped)
        if result is not None:
            return graph.tensor(result.name or "", out, tuple(order[axis] for axis in result.order))
    if len(b.shape) == 2 and not a_batch and len(a_sum) == 1:
        result = _by_matrix(graph, a, b, a_free, a_sum, b_free, b_sum, out)
        if result is not None:
            return result
    left = graph.read(a, (*a_batch, *a_free, *a_sum))
    right = graph.read(b, (*b_batch, *b_sum, *b_free))
    batch = [a.shape[axis] for axis in a_batch]
    rows, columns, inner = ([x.shape[axis] for axis in axes] for x, axes in ((a, a_free), (b, b_free), (a, a_sum)))
    if (len(rows), len(inner)) != (1, 1):
        left = graph.reshape(left, [*batch, math.prod(rows), math.prod(inner)])
    if (len(inner), len(columns)) != (1, 1):
        right = graph.reshape(right, [*batch, math.prod(inner), math.prod(columns)])
    name = graph.add("MatMul", left, right)
    if (len(rows), len(columns)) != (1, 1):
        name = graph.reshape(name, [*batch, *rows, *columns])
    return graph.tensor(name, out)


def _by_matrix(
    graph: Graph,
    x: Tensor,
    matrix: Tensor,
    free: Sequence[int],
    summed: Sequence[int],
    matrix_free: Sequence[int],
    matrix_summed: Sequence[int],
    out: Any,
) -> Tensor | None:
    """A product with a matrix: as a convolution of one pixel where the maps are NCHW."""
    if len(matrix_free) != 1 or len(summed) != 1 or len(free) < 1:
        return None
    if matrix.known is not None and len(x.shape) == 4 and x.order == NCHW and summed[0] == 3:
        weights = np.transpose(matrix.known, (*matrix_free, *matrix_summed))[:, :, None, None]
        return graph.tensor(graph.add("Conv", graph.read(x, NCHW), weights), out, NCHW)
    if len(x.shape) > 2 and x.order[-2] == summed[0]:
        name = graph.add("MatMul", graph.read(matrix, (*matrix_free, *matrix_summed)), graph.read(x, x.order))
        return graph.tensor(name, out, tuple(len(free) if a == summed[0] else free.index(a) for a in x.order))
    left = [axis for axis in x.order if axis != summed[0]]
    weights = graph.read(matrix, (*matrix_summed, *matrix_free))
    name = graph.add("MatMul", graph.read(x, (*left, *summed)), weights)
    return graph.tensor(name, out, (*(free.index(axis) for axis in left), len(free)))


def resize(mode: str) -> Callable[..., Tensor]:
    """The rule of a resize."""

    def rule(graph: Graph, equation: Any, x: Tensor) -> Tensor:
        out, p = equation.outvars[0].aval, equation.params
        factors = [b / a for a, b in zip(x.shape[1:3], p["size"], strict=True)]
        whole = all(factor == int(factor) for factor in factors)
        source = graph.read(x, NCHW)
        if mode == "nearest" and not whole:
            for axis, side in ((1, p["size"][0]), (2, p["size"][1])):
                n, i = x.shape[axis], np.arange(side)
                places = (2 * i + 1) * n // (2 * side) if p["half_pixel"] else i * n // side
                source = graph.add("Gather", source, places, axis=axis + 1)
            return graph.tensor(source, out, NCHW)
        attributes: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": "half_pixel"}
        if mode == "nearest":  # for whole factors, this is the same as half_pixel, and exact
            attributes |= {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
        elif p["align_corners"]:
            attributes["coordinate_transformation_mode"] = "align_corners"
        if mode == "cubic":
            attributes["cubic_coeff_a"] = -0.75
        if whole:
            scales = np.asarray([1, 1, *factors], np.float32)
            name = graph.add("Resize", source, None, scales, **attributes)
        else:
            sides = graph.sizes([x.shape[0], x.shape[3], *p["size"]])
            name = graph.add("Resize", source, None, None, sides, **attributes)
        return graph.tensor(name, out, NCHW)

    return rule


def max_pool(graph: Graph, equation: Any, x: Tensor) -> list[Tensor]:
    """The maximum of each window, and its position in the window."""
    values, places = (variable.aval for variable in equation.outvars)
    window, stride, padding = (equation.params[name] for name in ("window", "stride", "padding"))
    source = graph.read(x, NCHW)
    best = graph.add("MaxPool", source, kernel_shape=[window] * 2, strides=[stride] * 2, pads=[padding] * 4)
    border = np.asarray([0, 0, padding, padding] * 2)
    padded = graph.add("Pad", source, border, np.asarray(-np.inf, x.dtype)) if padding else source
    position = np.asarray(0, np.int32)
    sides = [(side - 1) * stride + 1 for side in values.shape[1:3]]
    for number in reversed(range(window**2)):
        start = np.asarray(divmod(number, window))
        tap = graph.add("Slice", padded, start, start + sides, np.asarray([2, 3]), np.asarray([stride] * 2))
        less = graph.add("Less", tap, best)
        position = graph.add("Where", less, position, np.asarray(number, np.int32))
    return [graph.tensor(best, values, NCHW), graph.tensor(graph.cast(position, places.dtype), places, NCHW)]


def window_pool(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    """The maximum, or the sum, of each window."""
    p, out = equation.params, equation.outvars[0].aval
    window = p["window_dimensions"]
    order = sorted(range(len(window)), key=lambda axis: (window[axis] > 1, axis))
    plain = {*p["base_dilation"], *(p["window_strides"][axis] for axis in order[:2])} == {1}
    if not plain or any(window[axis] > 1 or any(p["padding"][axis]) for axis in order[:2]):
        raise NotImplementedError("ONNX pools only along axes other than two")
    axes = order[2:]
    options: dict[str, Any] = {
        "kernel_shape": [window[axis] for axis in axes],
        "strides": [p["window_strides"][axis] for axis in axes],
        "pads": [p["padding"][axis][side] for side in (0, 1) for axis in axes],
        "dilations": [p["window_dilation"][axis] for axis in axes],
    }
    if equation.primitive.name == "reduce_window_max":
        return graph.tensor(graph.add("MaxPool", graph.read(x, tuple(order)), **options), out, tuple(order))
    if set(options.pop("dilations")) != {1}:
        raise NotImplementedError("ONNX has no dilated sums of windows in this version")
    name = graph.add("AveragePool", graph.read(x, tuple(order)), count_include_pad=1, **options)
    name = graph.add("Mul", name, np.asarray(math.prod(window), x.dtype))
    return graph.tensor(name, out, tuple(order))


def layer_norm(graph: Graph, equation: Any, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalises the last axis."""
    vectors = [_vector(graph, each, (-1,)) for each in (scale, bias)]
    epsilon = equation.params["epsilon"]
    name = graph.add("LayerNormalization", graph.read(x), *vectors, axis=-1, epsilon=epsilon)
    return graph.tensor(name, equation.outvars[0].aval)


def group_norm(graph: Graph, equation: Any, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """Normalises groups of channels of each sample, as an instance norm of the groups."""
    p, out = equation.params, equation.outvars[0].aval
    groups = np.asarray([0, p["groups"], -1])
    ones = np.ones(p["groups"], x.dtype)
    name = graph.add("Reshape", graph.read(x, NCHW), groups)
    name = graph.add("InstanceNormalization", name, ones, 0 * ones, epsilon=p["epsilon"])
    name = graph.add("Reshape", name, np.asarray([0, *(x.shape[axis] for axis in NCHW[1:])]))
    scale_name, bias_name = (_vector(graph, each, (-1, 1, 1)) for each in (scale, bias))
    name = graph.add("Add", graph.add("Mul", name, scale_name), bias_name)
    return graph.tensor(graph.add("Relu", name) if p["relu"] else name, out, NCHW)


def roi_align(graph: Graph, equation: Any, x: Tensor, boxes: Tensor) -> Tensor | None:
    """The averages of each box's bins."""
    p, out = equation.params, equation.outvars[0].aval
    if p["sampling_ratio"] == 0:  # onnxruntime takes other numbers of samples than torchvision
        return None
    batch, number = boxes.shape[:2]
    corners = graph.reshape(graph.read(boxes), [batch * number, 4])
    image = graph.add("Unsqueeze", counted(graph, batch), np.asarray([1]))
    image = graph.reshape(graph.add("Expand", image, graph.sizes([batch, number])), [batch * number])
    name = graph.add(
        "RoiAlign", graph.read(x, NCHW), corners, image, output_height=p["output_size"][0],
        output_width=p["output_size"][1], sampling_ratio=p["sampling_ratio"], spatial_scale=float(p["scale"]),
        coordinate_transformation_mode="half_pixel" if p["aligned"] else "output_half_pixel",
    )  # fmt: skip
    order = (0, 1, 4, 2, 3)
    return graph.tensor(graph.reshape(name, [out.shape[axis] for axis in order]), out, order)


def _vector(graph: Graph, x: Tensor, shape: tuple[int, ...]) -> str:
    if x.known is not None:
        return graph.constant(x.known.reshape(shape))
    return graph.add("Reshape", graph.read(x), np.asarray(shape))


def softmax(graph: Graph, equation: Any, x: Tensor) -> Tensor:
    """The softmax along the last axis."""
    return graph.tensor(graph.add("Softmax", graph.read(x), axis=-1), equation.outvars[0].aval)


RULES: dict[str, Callable[..., Any]] = {
    "conv_general_dilated": convolution,
    "dot_general": product,
    "group_norm": group_norm,
    "layer_norm": layer_norm,
    "max_pool_with_indices": max_pool,
    "reduce_window_max": window_pool,
    "reduce_window_sum": window_pool,
    "resize_bicubic": resize("cubic"),
    "resize_bilinear": resize("linear"),
    "resize_nearest": resize("nearest"),
    "roi_align": roi_align,
    "softmax": softmax,
}
