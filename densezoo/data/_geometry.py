"""How the fields of a batch move on the device."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from densezoo.data import _fields

Batch = Mapping[str, Array]


def moves(name: str) -> bool:
    """Tells whether a field is made of pixels."""
    return _fields.is_image(name) or _fields.is_map(name)


def extent(batch: Batch, caller: str) -> tuple[int, int, int]:
    """Checks the static shapes of a batch and gives its number of samples, height and width."""
    shapes = {name: array.shape for name, array in batch.items() if moves(name)}
    if not shapes:
        raise ValueError(
            f"{caller} got a batch with the fields {sorted(batch)}; expected `image` or `mask` among them."
        )
    for name, shape in shapes.items():
        if len(shape) != (4 if _fields.is_image(name) else 3):
            expected = "(batch, height, width, channels)" if _fields.is_image(name) else "(batch, height, width)"
            raise ValueError(f"{caller} got {name} of shape {shape}; expected {expected}.")
        if _fields.is_image(name) and not jnp.issubdtype(batch[name].dtype, jnp.floating):
            raise TypeError(f"{caller} got {name} of type {batch[name].dtype}; expected floats: see data.to_float.")
    extents = {shape[:3] for shape in shapes.values()}
    if len(extents) > 1:
        raise ValueError(f"{caller} got fields of different sizes: {shapes}; expected one height and width for all.")
    samples, height, width = extents.pop()
    for name, array in batch.items():
        known = moves(name) or name in ("boxes", "labels")
        if not known and array.ndim > 2 and (height, width) in (array.shape[1:3], array.shape[-2:]):
            raise ValueError(
                f"{caller} got a field {name} of shape {array.shape}, which has the images' height and width but would "
                "not move with them; leave it out of the batch, or add it after the augmentation."
            )
    return samples, height, width


def choose(chosen: Bool[Array, " b"], batch: Batch, moved: Batch) -> dict[str, Array]:
    """Takes the chosen samples from `moved` and the others from `batch`."""

    def pick(before: Array, after: Array) -> Array:
        return jnp.where(chosen.reshape(-1, *([1] * (before.ndim - 1))), after, before)

    return {name: pick(batch[name], moved[name]) if moves(name) or name == "boxes" else batch[name] for name in batch}


def mirrored(batch: Batch, axis: int, length: int) -> dict[str, Array]:
    """Mirrors all samples along the axis 1 (rows) or 2 (columns)."""
    result = {name: jnp.flip(array, axis) if moves(name) else array for name, array in batch.items()}
    if "boxes" in batch:
        low, high = (0, 2) if axis == 2 else (1, 3)
        boxes = batch["boxes"]
        turned = boxes.at[..., low].set(length - boxes[..., high]).at[..., high].set(length - boxes[..., low])
        if "labels" in batch:  # the zeros of empty places stay
            turned = jnp.where((batch["labels"] >= 0)[..., None], turned, jnp.zeros_like(turned))
        result["boxes"] = turned
    return result


def transposed(batch: Batch) -> dict[str, Array]:
    """Exchanges rows and columns of all samples."""
    result = {name: array.swapaxes(1, 2) if moves(name) else array for name, array in batch.items()}
    if "boxes" in batch:
        result["boxes"] = batch["boxes"][..., jnp.asarray([1, 0, 3, 2])]
    return result


def move_boxes(
    batch: dict[str, Array],
    zoom: Float[Array, "b 2"],
    shift: Float[Array, "b 2"],
    height: int,
    width: int,
    caller: str,
) -> dict[str, Array]:
    """Moves each point (y, x) of the boxes to zoom * (y, x) + shift, and cuts them off at the border."""
    if "boxes" not in batch:
        return batch
    if "labels" not in batch:
        raise ValueError(f"{caller} got boxes but no labels; expected labels (b, n), in which -1 marks boxes left out.")
    order = jnp.asarray([1, 0, 1, 0])
    boxes = batch["boxes"] * zoom[:, order][:, None] + shift[:, order][:, None]
    boxes, labels = _fields.clip_boxes(jnp, boxes, batch["labels"], height, width)
    return {**batch, "boxes": boxes, "labels": labels}


def channel_means(image: Float[Array, "b h w c"]) -> Float[Array, "b 1 1 c"]:
    """Averages each image over its pixels; rows first, which vectorises where there are few channels."""
    samples, _, width, channels = image.shape
    columns = image.reshape(samples, -1, width * channels).mean(axis=1, dtype=jnp.float32)
    return columns.reshape(samples, 1, width, channels).mean(axis=2, keepdims=True).astype(image.dtype)


def take(array: Array, index: Float[Array, "b n"], axis: int) -> Array:
    """Takes rows (axis 1) or columns (axis 2) of each sample, those beyond the border from the border."""
    index = jnp.clip(index, 0, array.shape[axis] - 1).astype(jnp.int32)
    return jax.vmap(lambda sample, chosen: jnp.take(sample, chosen, axis=axis - 1, mode="clip"))(array, index)


def interpolate(array: Array, position: Float[Array, "b n"], axis: int) -> Array:
    """Interpolates rows (axis 1) or columns (axis 2) of each sample linearly, at positions in pixels."""
    before = jnp.floor(position - 0.5)
    weight = (position - 0.5 - before).astype(array.dtype)
    weight = weight[:, :, None, None] if axis == 1 else weight[:, None, :, None]
    low = take(array, before, axis)
    return low + weight * (take(array, before + 1, axis) - low)
