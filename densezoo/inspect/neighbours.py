"""Operations that read a neighbourhood of every position, and the table of all rules."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from densezoo.inspect.flat import Step, compact
from densezoo.inspect.local import (
    Aligned,
    Along,
    Axes,
    Broadcast,
    Concatenate,
    Dot,
    NotLocal,
    Reduce,
    Rule,
    Stack,
    Tables,
    Transpose,
    Window,
    axes_of,
    bind,
    common,
    cut,
    positions,
)
from densezoo.inspect.reach import ELEMENTWISE, REDUCTIONS, WINDOWS


class Slice(Rule):
    """Every n-th position of a part."""

    def axes(self, step: Step) -> list[Axes]:
        return [common(step)]

    def need(self, step: Step, k: int, out: Window, exact: bool) -> list[Window | None]:
        axis, parameters = common(step)[k], step.equation.params
        first, stride = parameters["start_indices"][axis], (parameters["strides"] or {axis: 1})[axis]
        return [Window(first + stride * out.start, stride * (out.length - 1) + 1, out.used)]

    def run(self, step: Step, arrays: list[Any], lengths: Axes, tables: Sequence[Any]) -> Any:
        starts, limits = (list(step.equation.params[f"{name}_indices"]) for name in ("start", "limit"))
        for axis in common(step):
            starts[axis], limits[axis] = 0, arrays[0].shape[axis]
        return bind(step, arrays, start_indices=tuple(starts), limit_indices=tuple(limits))


class Pad(Rule):
    """Constant values around an array."""

    def axes(self, step: Step) -> list[Axes]:
        if step.inputs[1].known is None or any(step.equation.params["padding_config"][a][2] for a in common(step)):
            raise NotLocal
        return [common(step)]

    def need(self, step: Step, k: int, out: Window, exact: bool) -> list[Window | None]:
        low = step.equation.params["padding_config"][common(step)[k]][0]
        return [Window(out.start - low, out.length, out.used), None]

    def fill(self, step: Step, k: int) -> Any:
        return step.inputs[1].known if any(step.equation.params["padding_config"][common(step)[k]]) else None

    def run(self, step: Step, arrays: list[Any], lengths: Axes, tables: Sequence[Any]) -> Any:
        config = list(step.equation.params["padding_config"])
        for axis in common(step):
            config[axis] = (0, 0, 0)
        return bind(step, arrays, padding_config=tuple(config))


class Reshape(Rule):
    """Keeps the spatial axes, joins one with axes after it (as in a pixel shuffle), or divides it."""

    def _changed(self, step: Step, k: int) -> tuple[int, int, int]:
        """The new axis, and by how much it is longer (first number) or shorter (second number)."""
        axis, old, new = common(step)[k], step.inputs[0].shape, step.outputs[0].shape
        if step.name == "squeeze":
            removed = step.equation.params["dimensions"]
            if axis in removed:
                raise NotLocal
            return axis - sum(other < axis for other in removed), 1, 1
        before, size = math.prod(old[:axis]), old[axis]
        places = [place for place in range(len(new)) if math.prod(new[:place]) == before]
        for place in sorted(places, key=lambda place: (new[place] != size, abs(place - axis))):
            longer, shorter = max(1, new[place] // size), max(1, size // new[place])
            if new[place] * shorter != size * longer:
                continue
            # The axes that are joined with it, or made of it, are the next ones.
            following, wanted = (old[axis + 1 :], longer) if longer > 1 else (new[place + 1 :], shorter)
            joined = [end for end in range(len(following) + 1) if math.prod(following[:end]) == wanted]
            if joined and (longer == 1 or common(step)[1 - k] not in range(axis + 1, axis + 1 + joined[0])):
                return place, longer, shorter
        raise NotLocal

    def axes(self, step: Step) -> list[Axes]:
        rows, columns = (self._changed(step, k)[0] for k in (0, 1))
        if rows == columns:
            raise NotLocal
        return [(rows, columns)]

    def need(self, step: Step, k: int, out: Window, exact: bool) -> list[Window | None]:
        _, longer, shorter = self._changed(step, k)
        even = exact and not (out.start % longer).any() and out.length % longer == 0
        length = out.length // longer if even else (out.length + longer - 2) // longer + 1
        return [Window(out.start // longer * shorter, length * shorter, out.used)]

    def tables(self, step: Step, k: int, out: Window, inputs: Sequence[Window | None]) -> Tables:
        longer = self._changed(step, k)[1]
        return {"start": (out.start % longer).astype(np.int32)} if longer > 1 else {}

    def run(self, step: Step, arrays: list[Any], lengths: Axes, tables: Sequence[Any]) -> Any:
        shape = list(step.outputs[0].shape)
        for k, axis in enumerate(common(step)):
            place, longer, shorter = self._changed(step, k)
            shape[place] = arrays[0].shape[axis] * longer // shorter
        if step.name == "squeeze":
            (y,) = bind(step, arrays)
        else:
            y = arrays[0].reshape(shape)
        for k in (0, 1):
            place, longer, _ = self._changed(step, k)
            if longer > 1:
                y = cut(y, place, tables[k]["start"], lengths[k])
        return [y]


class ReduceWindow(Rule):
    """Pooling."""

    def axes(self, step: Step) -> list[Axes]:
        if any(step.equation.params["base_dilation"][axis] > 1 for axis in common(step)):
            raise NotLocal
        return [common(step)]

    def need(self, step: Step, k: int, out: Window, exact: bool) -> list[Window | None]:
        axis, p = common(step)[k], step.equation.params
        reach = p["window_dilation"][axis] * (p["window_dimensions"][axis] - 1)
        stride = p["window_strides"][axis]
        return [Window(out.start * stride - p["padding"][axis][0], (out.length - 1) * stride + reach + 1, out.used)]

    def fill(self, step: Step, k: int) -> Any:
        if not any(step.equation.params["padding"][common(step)[k]]):
            return None
        dtype = step.inputs[0].dtype
        if step.name == "reduce_window_sum":
            return np.zeros((), dtype)
        lowest = step.name == "reduce_window_max"
        if jnp.issubdtype(dtype, jnp.floating):
            return np.asarray(-np.inf if lowest else np.inf, dtype)
        limits = jnp.iinfo(dtype)
        return np.asarray(limits.min if lowest else limits.max, dtype)

    def run(self, step: Step, arrays: list[Any], lengths: Axes, tables: Sequence[Any]) -> Any:
        padding = list(step.equation.params["padding"])
        for axis in common(step):
            padding[axis] = (0, 0)
        return bind(step, arrays, padding=tuple(padding))


class Convolution(Rule):
    """Also transposed ones, which have zeros between the pixels of their input."""

    def axes(self, step: Step) -> list[Axes]:
        if step.inputs[0].axes is None or step.inputs[1].axes is not None or step.inputs[1].known is None:
            raise NotLocal
        numbers, axes = step.equation.params["dimension_numbers"], common(step)
        if set(axes) & set(numbers.lhs_spec[:2]):
            raise NotLocal
        places = [self._place(step, k) for k in (0, 1)]
        if any(stride > 1 and spread > 1 for stride, _, spread, _ in (self._options(step, k) for k in (0, 1))):
            raise NotLocal
        return [(numbers.out_spec[2 + places[0]], numbers.out_spec[2 + places[1]])]

    def _place(self, step: Step, k: int) -> int:
        return step.equation.params["dimension_numbers"].lhs_spec[2:].index(common(step)[k])

    def _options(self, step: Step, k: int) -> tuple[int, tuple[int, int], int, int]:
        """Stride, padding, zeros between pixels plus one, and the kernel's extent minus one."""
        place, p = self._place(step, k), step.equation.params
        size = step.inputs[1].shape[p["dimension_numbers"].rhs_spec[2 + place]]
        return (
            p["window_strides"][place],
            p["padding"][place],
            p["lhs_dilation"][place],
            p["rhs_dilation"][place] * (size - 1),
        )

    def _aligned(self, out: Window, spread: int, exact: bool) -> tuple[np.ndarray, int]:
        """The window, extended so that it begins at a pixel of the input."""
        even = exact and not (out.start % spread).any()
        return out.start // spread * spread, out.length + (0 if even else spread - 1)

    def need(self, step: Step, k: int, out: Window, exact: bool) -> list[Window | None]:
        stride, (low, _), spread, reach = self._options(step, k)
        start, length = self._aligned(out, spread, exact)
        first = (start * stride - low) // spread
        last = (start * stride - low + (length - 1) * stride + reach) // spread
        return [Window(first, int((last - first).max()) + 1, out.used), None]

    def fill(self, step: Step, k: int) -> Any:
        _, padding, spread, _ = self._options(step, k)
        return np.zeros((), step.inputs[0].dtype) if any(padding) or spread > 1 else None

    def tables(self, step: Step, k: int, out: Window, inputs: Sequence[Window | None]) -> Tables:
        spread = self._options(step, k)[2]
        return {"start": (out.start % spread).astype(np.int32)} if spread > 1 else {}

    def run(self, step: Step, arrays: list[Any], lengths: Axes, tables: Sequence[Any]) -> Any:
        padding = list(step.equation.params["padding"])
        for k, axis in enumerate(common(step)):
            _, (low, _), spread, reach = self._options(step, k)
            padding[self._place(step, k)] = (0, 0)
            if spread > 1:
                cropped = -low % spread  # zeros before the first position that the window reads
                stored = (arrays[0].shape[axis] - 1) * spread + 1
                # As many results as the input gives, at least those of the window.
                enough = lengths[k] + spread - 1 + reach + cropped
                padding[self._place(step, k)] = (-cropped, max(0, enough - stored))
        (y,) = bind(step, arrays, padding=tuple(padding))
        for k, axis in enumerate(axes_of(step.outputs[0])):
            if self._options(step, k)[2] > 1:
                y = cut(y, axis, tables[k]["start"], lengths[k])
        return [y]


class Gather(Rule):
    """Positions that are known, such as those of a resize, or one position per pixel along another axis."""

    def _batch(self, step: Step) -> list[int]:
        offsets = step.equation.params["dimension_numbers"].offset_dims
        return [axis for axis in range(len(step.outputs[0].shape)) if axis not in offsets]

    def _kind(self, step: Step, k: int) -> tuple[str, int, int]:
        """How a spatial axis passes, the result's axis, and the axis of the indices (or -1)."""
        operand, indices = step.inputs
        numbers, sizes = step.equation.params["dimension_numbers"], step.equation.params["slice_sizes"]
        if operand.axes is None:
            raise NotLocal
        axis, batch = operand.axes[k], self._batch(step)
        if axis in numbers.operand_batching_dims:
            at = numbers.start_indices_batching_dims[numbers.operand_batching_dims.index(axis)]
            if indices.axes is not None and indices.axes[k] != at:
                raise NotLocal
            return "beside", batch[at], at
        if indices.axes is not None:
            raise NotLocal
        if axis not in numbers.start_index_map:
            hidden = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
            if axis in hidden or sizes[axis] != operand.shape[axis]:
                raise NotLocal
            place = [a for a in range(len(sizes)) if a not in hidden].index(axis)
            return "whole", numbers.offset_dims[place], -1
        if indices.known is None or axis not in numbers.collapsed_slice_dims or len(numbers.start_index_map) > 1:
            raise NotLocal
        small = compact(indices.known)
        free = [q for q in range(len(batch)) if q not in numbers.start_indices_batching_dims]
        varied = [q for q in free if small.shape[q] > 1] or free
        return "picked", batch[varied[0]], varied[0]

    def axes(self, step: Step) -> list[Axes]:
        kinds = [self._kind(step, k) for k in (0, 1)]
        indices = step.inputs[1]
        if indices.axes is None and indices.known is None:
            raise NotLocal
        if indices.known is not None:  # positions that depend on row and column
            small = compact(indices.known)
            if sum(small.shape[place] > 1 for _, _, place in kinds if place >= 0) > 1:
                raise NotLocal
        if kinds[0][1] == kinds[1][1]:
            raise NotLocal
        return [(kinds[0][1], kinds[1][1])]

    def reads_stored(self, step: Step, k: int) -> bool:
        return self._kind(step, k)[0] == "picked"

    def _picked(self, step: Step, k: int, out: Window) -> np.ndarray:
        """The indices of each tile's window, the tile first."""
        small, place = compact(step.inputs[1].known), self._kind(step, k)[2]
        return np.stack([small.take(places, place) for places in positions(out, small.shape[place])]).astype(np.int64)

    def need(self, step: Step, k: int, out: Window, exact: bool) -> list[Window | None]:
        kind = self._kind(step, k)[0]
        if kind != "picked":
            return [out, None if step.inputs[1].axes is None else out]
        last = step.inputs[0].shape[common(step)[k]] - 1
        picked = np.clip(self._picked(step, k, out).reshape(len(out.start), -1), 0, last)
        first = picked.min(1)
        return [Window(first, int((picked.max(1) - first)[out.used].max(initial=0)) + 1, out.used), None]

    def tables(self, step: Step, k: int, out: Window, inputs: Sequence[Window | None]) -> Tables:
        kind, _, place = self._kind(step, k)
        if kind == "picked":
            assert inputs[0] is not None
            last = step.inputs[0].shape[common(step)[k]] - 1
            picked = np.clip(self._picked(step, k, out), 0, last)
            local = picked - inputs[0].start.reshape(-1, *(1,) * (picked.ndim - 1))
            return {"indices": np.clip(local, 0, inputs[0].length - 1).astype(np.int32)}
        if kind == "beside" and step.inputs[1].axes is None and compact(step.inputs[1].known).shape[place] > 1:
            return {"indices": self._picked(step, k, out).astype(np.int32)}
        return {}

    def run(self, step: Step, arrays: list[Any], lengths: Axes, tables: Sequence[Any]) -> Any:
        sizes = list(step.equation.params["slice_sizes"])
        operand, indices = step.inputs
        shape = list(indices.shape)
        for k, axis in enumerate(axes_of(operand)):
            kind, _, place = self._kind(step, k)
            if kind == "whole":
                sizes[axis] = arrays[0].shape[axis]
            elif indices.axes is None:
                shape[place] = lengths[k]
        if indices.axes is None:
            given = [table["indices"] for table in tables if "indices" in table]
            small = given[0] if given else jnp.asarray(compact(indices.known).astype(np.int32))
            arrays[1] = jnp.broadcast_to(small, shape)
        return bind(step, arrays, slice_sizes=tuple(sizes))


RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, Aligned()),
    **dict.fromkeys(REDUCTIONS, Reduce()),
    **dict.fromkeys(WINDOWS, ReduceWindow()),
    **dict.fromkeys(("cumsum", "cummax", "rev", "split"), Along()),
    "broadcast_in_dim": Broadcast(),
    "concatenate": Concatenate(),
    "conv_general_dilated": Convolution(),
    "dot_general": Dot(),
    "gather": Gather(),
    "pad": Pad(),
    "reshape": Reshape(),
    "squeeze": Reshape(),
    "slice": Slice(),
    "stack": Stack(),
    "transpose": Transpose(),
}
"""The rule of each primitive."""
