"""How each operation computes an array that lies in the corner of a larger one: see `densezoo.inspect.corner`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from densezoo.inspect.corner_reshape import Reshape
from densezoo.inspect.corner_rule import Numbers, Rule, filled, sizes_of, varying
from densezoo.inspect.flat import Step
from densezoo.inspect.local import bind
from densezoo.inspect.matching import Misfit
from densezoo.inspect.reach import ELEMENTWISE, REDUCTIONS, WINDOWS


class Shaped(Rule):
    """Operations with parameters that follow from the shapes."""

    def __init__(self, *sized: str):
        self.sized = sized


class Reduce(Rule):
    """Sums, maxima and the like."""

    def numbers(self, step: Step, like: Step, moved: bool) -> Numbers:
        axes = varying(like.inputs[0], step.equation.params["axes"])
        return {"sizes": sizes_of(step.inputs[0], axes)} if axes else {}

    def run(self, like: Step, arrays: list[Any], numbers: Any) -> list[Any]:
        axes = varying(like.inputs[0], like.equation.params["axes"])
        if axes:
            neutral = _neutral(like.name.removeprefix("reduce_").removeprefix("arg"), arrays[0].dtype)
            arrays = [filled(arrays[0], axes, numbers["sizes"], neutral)]
        return bind(like, arrays)


def _neutral(name: str, dtype: Any) -> Any:
    """The value that does not change a reduction."""
    if name in ("max", "min"):
        if jnp.issubdtype(dtype, jnp.bool_):
            return name == "min"
        if jnp.issubdtype(dtype, jnp.floating):
            return jnp.array(-jnp.inf if name == "max" else jnp.inf, dtype)
        limits = jnp.iinfo(dtype)
        return jnp.array(limits.min if name == "max" else limits.max, dtype)
    if name == "and":
        return jnp.array(True) if jnp.issubdtype(dtype, jnp.bool_) else jnp.array(-1).astype(dtype)  # all bits
    return jnp.array({"sum": 0, "or": 0, "xor": 0, "prod": 1}[name], dtype)


class Dot(Rule):
    """Matrix products and the like."""

    def _axes(self, like: Step, side: int) -> list[int]:
        contracted = like.equation.params["dimension_numbers"][0][side]
        return [axis for axis in contracted if like.inputs[side].varies[axis]]  # in the order of the other side's

    def numbers(self, step: Step, like: Step, moved: bool) -> Numbers:
        axes = self._axes(like, 0)
        return {"sizes": sizes_of(step.inputs[0], axes)} if axes else {}

    def run(self, like: Step, arrays: list[Any], numbers: Any) -> list[Any]:
        for side in (0, 1):
            if axes := self._axes(like, side):
                arrays[side] = filled(arrays[side], axes, numbers["sizes"], 0)
        return bind(like, arrays)


class Windows(Rule):
    """Operations that read a neighbourhood: convolutions and pooling.

    The padding before an array may depend on its size, as TensorFlow's "SAME" padding does.
    """

    sized = ("padding",)

    def _reads(self, step: Step) -> dict[int, tuple[int, int, int, int]]:
        """For each axis with a window: reach, stride, its place in the parameters and dilation of the input."""
        raise NotImplementedError

    def _value(self, step: Step, dtype: Any) -> Any:
        return jnp.zeros((), dtype)

    def moved(self, step: Step, like: Step) -> bool:
        starts, others = ([before for before, _ in each.equation.params["padding"]] for each in (step, like))
        return starts != others

    def numbers(self, step: Step, like: Step, moved: bool) -> Numbers:
        reads, padding = self._reads(step), step.equation.params["padding"]
        axes = varying(like.inputs[0], list(reads))
        places = [reads[axis][2] for axis in axes]
        if moved and any(reads[axis][3] != 1 for axis in axes):
            raise Misfit
        fixed = [place for axis, (_, _, place, _) in reads.items() if axis not in axes]
        if any(padding[place] != like.equation.params["padding"][place] for place in fixed):
            raise Misfit
        numbers = {"sizes": sizes_of(step.inputs[0], axes)} if axes else {}
        return numbers | ({"before": np.array([padding[place][0] for place in places], np.int32)} if moved else {})

    def run(self, like: Step, arrays: list[Any], numbers: Any) -> list[Any]:
        reads, padding = self._reads(like), list(like.equation.params["padding"])
        axes, x = varying(like.inputs[0], list(reads)), arrays[0]
        value = self._value(like, x.dtype)
        if any(reads[axis][0] or padding[reads[axis][2]] != (0, 0) or reads[axis][3] != 1 for axis in axes):
            x = filled(x, axes, numbers["sizes"], value)
        for number, axis in enumerate(axes if "before" in numbers else []):
            reach, stride, place, _ = reads[axis]
            length = (like.outputs[0].shape[axis] - 1) * stride + reach + 1
            around = [(0, 0, 0)] * x.ndim
            around[axis] = (reach, max(0, length - x.shape[axis]), 0)
            x = jax.lax.dynamic_slice_in_dim(
                jax.lax.pad(x, value, around), reach - numbers["before"][number], length, axis
            )
            padding[place] = (0, 0)
        return bind(like, [x, *arrays[1:]], padding=tuple(padding))


class Convolution(Windows):
    """Convolutions."""

    def _reads(self, step: Step) -> dict[int, tuple[int, int, int, int]]:
        parameters = step.equation.params
        spec = parameters["dimension_numbers"]
        if spec.lhs_spec[2:] != spec.out_spec[2:]:
            raise Misfit
        sides = [step.inputs[1].shape[axis] for axis in spec.rhs_spec[2:]]
        found = {}
        for place, axis in enumerate(spec.lhs_spec[2:]):
            reach = (sides[place] - 1) * parameters["rhs_dilation"][place]
            found[axis] = reach, parameters["window_strides"][place], place, parameters["lhs_dilation"][place]
        return found

    def numbers(self, step: Step, like: Step, moved: bool) -> Numbers:
        if any(like.inputs[1].varies) or like.inputs[0].varies[like.equation.params["dimension_numbers"].lhs_spec[1]]:
            raise Misfit
        return super().numbers(step, like, moved)


class Pooling(Windows):
    """Maxima, minima and sums of windows."""

    def _reads(self, step: Step) -> dict[int, tuple[int, int, int, int]]:
        p = step.equation.params
        reads = zip(p["window_dimensions"], p["window_dilation"], p["window_strides"], p["base_dilation"], strict=True)
        return {
            axis: ((side - 1) * dilation, stride, axis, base)
            for axis, (side, dilation, stride, base) in enumerate(reads)
            if side > 1 or stride > 1 or p["padding"][axis] != (0, 0)
        }

    def _value(self, step: Step, dtype: Any) -> Any:
        return _neutral(step.name.removeprefix("reduce_window_"), dtype)


class Pad(Rule):
    """Constant values around an array."""

    sized = ("padding_config",)

    def numbers(self, step: Step, like: Step, moved: bool) -> Numbers:
        ours, theirs = (each.equation.params["padding_config"] for each in (step, like))
        both = zip(ours, theirs, like.outputs[0].varies, strict=True)
        if any(one[::2] != other[::2] if varies else one != other for one, other, varies in both):
            raise Misfit
        axes = varying(like.inputs[0])
        return {"sizes": sizes_of(step.inputs[0], axes)} if axes else {}

    def run(self, like: Step, arrays: list[Any], numbers: Any) -> list[Any]:
        if "sizes" not in numbers:
            return bind(like, arrays)
        axes = varying(like.inputs[0])
        return bind(like, [filled(arrays[0], axes, numbers["sizes"], arrays[1]), arrays[1]])


class Slice(Rule):
    """Every n-th position of a part, which may be counted from the end."""

    sized = ("start_indices", "limit_indices")

    def moved(self, step: Step, like: Step) -> bool:
        return step.equation.params["start_indices"] != like.equation.params["start_indices"]

    def numbers(self, step: Step, like: Step, moved: bool) -> Numbers:
        for name in self.sized:
            both = zip(step.equation.params[name], like.equation.params[name], like.inputs[0].varies, strict=True)
            if any(ours != theirs and not varied for ours, theirs, varied in both):
                raise Misfit
        return {"start": np.array(step.equation.params["start_indices"], np.int32)} if moved else {}

    def run(self, like: Step, arrays: list[Any], numbers: Any) -> list[Any]:
        if "start" not in numbers:
            return bind(like, arrays)
        x, parameters = arrays[0], like.equation.params
        strides = parameters["strides"] or (1,) * x.ndim
        for axis, length in enumerate(like.outputs[0].shape):
            if like.inputs[0].varies[axis]:
                places = numbers["start"][axis] + strides[axis] * jnp.arange(length, dtype=jnp.int32)
                x = jnp.take(x, places, axis, mode="clip")
            else:
                x = jax.lax.slice_in_dim(
                    x, parameters["start_indices"][axis], parameters["limit_indices"][axis], strides[axis], axis
                )
        return [x]


class Concatenate(Rule):
    """Arrays after another: the parts follow each other without gaps."""

    def numbers(self, step: Step, like: Step, moved: bool) -> Numbers:
        axis = step.equation.params["dimension"]
        if not any(node.varies[axis] for node in like.inputs[:-1]):
            return {}
        ends = np.cumsum([node.shape[axis] for node in like.inputs])
        places = [
            np.arange(node.shape[axis]) + end - large.shape[axis]
            for node, large, end in zip(step.inputs, like.inputs, ends, strict=True)
        ]
        joined = np.concatenate(places).astype(np.int32)
        return {"places": np.pad(joined, (0, like.outputs[0].shape[axis] - len(joined)))}

    def run(self, like: Step, arrays: list[Any], numbers: Any) -> list[Any]:
        (joined,) = bind(like, arrays)
        if "places" in numbers:
            joined = jnp.take(joined, numbers["places"], like.equation.params["dimension"], mode="clip")
        return [joined]


class Reverse(Rule):
    """The opposite order along some axes."""

    def numbers(self, step: Step, like: Step, moved: bool) -> Numbers:
        axes = varying(like.inputs[0], step.equation.params["dimensions"])
        return {"sizes": sizes_of(step.inputs[0], axes)} if axes else {}

    def run(self, like: Step, arrays: list[Any], numbers: Any) -> list[Any]:
        axes, x = varying(like.inputs[0], like.equation.params["dimensions"]), arrays[0]
        for number, axis in enumerate(axes):
            places = numbers["sizes"][number] - 1 - jnp.arange(x.shape[axis], dtype=jnp.int32)
            x = jnp.take(x, places, axis, mode="clip")
        others = [axis for axis in like.equation.params["dimensions"] if axis not in axes]
        return [jax.lax.rev(x, others)]


class Along(Rule):
    """Cumulative operations from the start, or splits of an axis that does not vary."""

    def numbers(self, step: Step, like: Step, moved: bool) -> Numbers:
        parameters = like.equation.params
        if (step.name == "split" or parameters["reverse"]) and like.inputs[0].varies[parameters["axis"]]:
            raise Misfit
        return {}


class Gather(Rule):
    """Positions of an array, by known or computed indices."""

    sized = ("slice_sizes",)

    def numbers(self, step: Step, like: Step, moved: bool) -> Numbers:
        parameters, operand, indices = like.equation.params, step.inputs[0], step.inputs[1]
        wholes = zip(step.equation.params["slice_sizes"], parameters["slice_sizes"], strict=True)
        for axis, (size, large) in enumerate(wholes):
            if size != large and (size, large) != (operand.shape[axis], like.inputs[0].shape[axis]):
                raise Misfit
        axes = parameters["dimension_numbers"].start_index_map
        if not varying(like.inputs[0], axes):
            return {}
        last = np.array([operand.shape[axis] - step.equation.params["slice_sizes"][axis] for axis in axes], np.int32)
        if indices.known is not None:
            known = np.asarray(indices.known)
            if (known < 0).any() or (known > last).any():
                raise Misfit  # what is read there depends on the mode
            return {}
        return {"last": last}

    def run(self, like: Step, arrays: list[Any], numbers: Any) -> list[Any]:
        operand, indices = arrays
        if "last" in numbers:
            last = numbers["last"].astype(indices.dtype).reshape(*(1,) * (indices.ndim - 1), -1)
            if like.equation.params["mode"] == jax.lax.GatherScatterMode.CLIP:
                indices = jnp.clip(indices, 0, last)
            else:  # what is outside of the smaller array is outside of the larger one
                outside = (indices < 0) | (indices > last)
                indices = jnp.where(outside, np.iinfo(np.int32).max, indices)
        return bind(like, [operand, indices])


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, Rule()),
    **dict.fromkeys(REDUCTIONS, Reduce()),
    **dict.fromkeys(WINDOWS, Pooling()),
    **dict.fromkeys(("cumsum", "cummax", "cummin", "cumprod", "split"), Along()),
    **dict.fromkeys(("stack", "transpose"), Rule()),
    "squeeze": Rule(),
    "broadcast_in_dim": Shaped("shape"),
    "concatenate": Concatenate(),
    "conv_general_dilated": Convolution(),
    "dot_general": Dot(),
    "gather": Gather(),
    "pad": Pad(),
    "reshape": Reshape(),
    "rev": Reverse(),
    "slice": Slice(),
}
"""The rule of each primitive."""
