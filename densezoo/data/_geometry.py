"""Moves the fields of a batch on the device: each according to its kind, sample by sample."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from densezoo.data import _instances
from densezoo.data.fields import KINDS, SIZE, Image, Kind, Map, group_of, kind_of

Batch = Mapping[str, Array]


def extent(batch: Batch, caller: str) -> tuple[int, int, int]:
    """Checks the static shapes of a batch and returns its number of samples, height and width."""
    shapes = {name: array.shape for name, array in batch.items() if isinstance(kind_of(name), Map)}
    if not shapes:
        raise ValueError(
            f"{caller} got a batch with the fields {sorted(batch)}; expected `image` or `mask` among them."
        )
    for name, shape in shapes.items():
        kind_of(name).check(name, shape, caller, ("batch",))
        if isinstance(kind_of(name), Image) and not jnp.issubdtype(batch[name].dtype, jnp.floating):
            raise TypeError(f"{caller} got {name} of type {batch[name].dtype}; expected floats: see data.to_float.")
    extents = {shape[:3] for shape in shapes.values()}
    if len(extents) > 1:
        raise ValueError(f"{caller} got fields of different sizes: {shapes}; expected one height and width for all.")
    samples, height, width = extents.pop()
    for name, array in batch.items():
        check_unknown(name, array.shape[1:], (height, width), caller)
    return samples, height, width


def check_unknown(name: str, shape: tuple[int, ...], size: tuple[int, int], caller: str) -> None:
    """Raises an error for an array that has a map's shape but no name in the table of kinds."""
    if len(shape) > 1 and size in (shape[:2], shape[-2:]) and name.removesuffix(group_of(name)) not in KINDS:
        raise ValueError(
            f"{caller} got a field {name} of shape {shape} a sample, which has the images' height and width but would "
            f"not move with them: set densezoo.data.fields.KINDS[{name!r}] to its kind, or leave it out of the batch."
        )


def change(batch: Batch, function: Callable[[Any, Array], Array]) -> dict[str, Array]:
    """Applies `function(kind, array of a sample)` to every field that moves."""

    def changed(name: str, array: Array) -> Array:
        kind: Kind = kind_of(name)
        return jax.vmap(lambda sample: function(kind, sample))(array) if kind.moves else array

    return {name: changed(name, array) for name, array in batch.items()}


def mirrored(batch: Batch, axis: int, length: int) -> dict[str, Array]:
    """Mirrors all samples along the axis 0 (rows) or 1 (columns); padded pictures within their `size`."""
    if SIZE not in batch:
        return change(batch, lambda kind, array: kind.mirror(array, axis, length))

    def mirror(kind: Any, array: Array, size: Array) -> Array:
        if isinstance(kind, Map):  # the padding, now first, moves back to the end
            return jnp.roll(kind.mirror(array, axis, length), size[axis] - length, axis)
        return kind.mirror(array, axis, size[axis].astype(array.dtype))

    def changed(name: str, array: Array) -> Array:
        kind = kind_of(name)
        return jax.vmap(lambda sample, size: mirror(kind, sample, size))(array, batch[SIZE]) if kind.moves else array

    return {name: changed(name, array) for name, array in batch.items()}


def refuse_sizes(batch: Batch, caller: str) -> None:
    """Raises an error for padded pictures, which would move outside their `size`."""
    if SIZE in batch:
        raise ValueError(
            f"{caller} got a batch with `size`, whose pictures are padded and would not stay at its top left: pass"
            " crops without `size` to it, or resize in the pipeline (`train_batches(resize=...)`)"
        )


def transposed(batch: Batch) -> dict[str, Array]:
    """Swaps rows and columns of all samples."""
    return change(batch, lambda kind, array: kind.transpose(array))


def choose(chosen: Bool[Array, " b"], batch: Batch, moved: Batch) -> dict[str, Array]:
    """Takes the chosen samples from `moved` and the others from `batch`."""

    def pick(before: Array, after: Array) -> Array:
        return jnp.where(chosen.reshape(-1, *([1] * (before.ndim - 1))), after, before)

    return {name: pick(array, moved[name]) if kind_of(name).moves else array for name, array in batch.items()}


def move_instances(
    before: Batch,
    after: Batch,
    zoom: Float[Array, "b 2"],
    shift: Float[Array, "b 2"],
    height: int,
    width: int,
    caller: str,
) -> dict[str, Array]:
    """Moves each point (y, x) of the boxes to zoom * (y, x) + shift, and drops instances that are outside."""
    names = [name for group in _instances.groups(after).values() for name in group]

    def move(before: Batch, after: Batch, zoom: Float[Array, "2"], shift: Float[Array, "2"]) -> dict[str, Array]:
        moved = {}
        for name, array in after.items():
            kind = kind_of(name)
            moved[name] = array if isinstance(kind, Map) else kind.move(array, zoom, shift)
        return _instances.settle(before, moved, height, width, caller)

    first, second = ({name: batch[name] for name in names} for batch in (before, after))
    return {**after, **jax.vmap(move)(first, second, zoom, shift)}
