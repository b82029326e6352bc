"""Augmentation on the device: pure functions `(key, batch) -> batch` to run inside the jitted train step.

A batch is a dict of arrays. The kind of a field determines how it changes: see `densezoo.data.fields`.

- Images: geometry and colours. The images of a sample share its geometry; colours are drawn for each image, because
  light differs between dates.
- Maps: geometry. Masks, instances and depth take the nearest pixel; normals are rotated with the image.
- Boxes follow the geometry and are clipped to the image. If less than a quarter of an instance's box or none of its
  pixels is left, it is removed from boxes, labels and the map of instances.

Other fields are unchanged. A field that has the images' height and width but no kind is an error, because it would no
longer match. Every sample draws its own random numbers. The result depends only on key and batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from densezoo.data import _geometry
from densezoo.data._arrays import channel_means, interpolate, nearest
from densezoo.data.fields import Image, Map, kind_of

Batch = _geometry.Batch
Transform = Callable[[Array, Batch], dict[str, Array]]

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601


def compose(*transforms: Transform) -> Transform:
    """Runs transforms in sequence, each with its own key.

    Args:
        *transforms: in the order in which they run.

    Returns:
        One transform.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> augment = jax.jit(compose(random_flip(), color_jitter(brightness=0.2), normalize([0.5], [0.25])))
        >>> batch = augment(jax.random.key(0), {"image": jnp.ones((2, 8, 8, 1)), "mask": jnp.ones((2, 8, 8), int)})
        >>> batch["image"].shape, batch["mask"].shape
        ((2, 8, 8, 1), (2, 8, 8))
    """

    def transform(key: Array, batch: Batch) -> dict[str, Array]:
        for index, step in enumerate(transforms):
            batch = step(jax.random.fold_in(key, index), batch)
        return dict(batch)

    return transform


def random_flip(*, horizontal: bool = True, vertical: bool = False) -> Transform:
    """Mirrors half of the samples; pictures with padding (given by `size`) stay at the top left.

    Args:
        horizontal: swap left and right.
        vertical: swap top and bottom, independently.

    Returns:
        The transform.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> batch = {"image": jnp.zeros((2, 4, 6, 3)), "boxes": jnp.asarray([[[0.0, 0.0, 2.0, 1.0]]] * 2)}
        >>> random_flip()(jax.random.key(0), batch)["boxes"].shape
        (2, 1, 4)
    """

    def transform(key: Array, batch: Batch) -> dict[str, Array]:
        samples, height, width = _geometry.extent(batch, "random_flip")
        drawn = jax.random.bernoulli(key, shape=(2, samples))
        if horizontal:
            batch = _geometry.choose(drawn[0], batch, _geometry.mirrored(batch, 1, width))
        if vertical:
            batch = _geometry.choose(drawn[1], batch, _geometry.mirrored(batch, 0, height))
        return dict(batch)

    return transform


def random_rot90() -> Transform:
    """Rotates each sample by 0, 90, 180 or 270 degrees; images must be square.

    Returns:
        The transform. It raises a ValueError when traced with images that are not square.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> random_rot90()(jax.random.key(0), {"image": jnp.zeros((2, 4, 4, 3))})["image"].shape
        (2, 4, 4, 3)
    """

    def transform(key: Array, batch: Batch) -> dict[str, Array]:
        samples, height, width = _geometry.extent(batch, "random_rot90")
        _geometry.refuse_sizes(batch, "random_rot90")
        if height != width:
            raise ValueError(f"random_rot90 got images of {height}x{width}; expected square ones: crop them first.")
        # Every rotation is an optional transposition, followed by optional mirroring along either axis.
        turns = jax.random.randint(key, (samples,), 0, 4)
        batch = _geometry.choose(turns % 2 == 1, batch, _geometry.transposed(batch))
        batch = _geometry.choose((turns == 1) | (turns == 2), batch, _geometry.mirrored(batch, 0, height))
        return _geometry.choose(turns >= 2, batch, _geometry.mirrored(batch, 1, width))

    return transform


def random_crop(size: int | tuple[int, int]) -> Transform:
    """Cuts a window from a random position of each sample.

    Args:
        size: height and width of the window, or one number for both.

    Returns:
        The transform. It raises a ValueError when traced with smaller images, or with boxes but no labels.

    Raises:
        ValueError: if the size is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> random_crop((4, 6))(jax.random.key(0), {"image": jnp.zeros((2, 8, 8, 3))})["image"].shape
        (2, 4, 6, 3)
    """
    rows, columns = (size, size) if isinstance(size, int) else size
    if rows < 1 or columns < 1:
        raise ValueError(f"size={size}; expected a positive number or a pair (height, width) of them.")

    def transform(key: Array, batch: Batch) -> dict[str, Array]:
        samples, height, width = _geometry.extent(batch, "random_crop")
        _geometry.refuse_sizes(batch, "random_crop")
        if rows > height or columns > width:
            raise ValueError(f"random_crop of {rows}x{columns} got images of {height}x{width}; expected larger ones.")
        spare = jnp.asarray([[height - rows + 1, width - columns + 1]], jnp.int32)
        corners = jax.random.randint(key, (samples, 2), 0, spare)

        def cut(sample: Array, corner: Int[Array, "2"]) -> Array:
            start = (corner[0], corner[1], *([0] * (sample.ndim - 2)))
            return jax.lax.dynamic_slice(sample, start, (rows, columns, *sample.shape[2:]))

        maps = {name: jax.vmap(cut)(batch[name], corners) for name in batch if isinstance(kind_of(name), Map)}
        shift = -corners.astype(jnp.float32)
        return _geometry.move_instances(
            batch, {**batch, **maps}, jnp.ones_like(shift), shift, rows, columns, "random_crop"
        )

    return transform


def random_scale(scales: tuple[float, float], *, ignore_index: int = 255) -> Transform:
    """Zooms each sample about a random centre, without changing its size.

    Images and vectors are interpolated bilinearly, at half-pixel centres; other maps take the nearest pixel. A zoom
    below 1 leaves space around the image, which is filled with the image's own mean, masks with `ignore_index`, other
    maps with the fill of their kind. Depths are not rescaled.

    Args:
        scales: minimum and maximum zoom, drawn uniformly in the logarithm; above 1 enlarges.
        ignore_index: value of label maps outside the image.

    Returns:
        The transform. It raises a ValueError when traced with boxes but no labels.

    Raises:
        ValueError: if the range is empty or not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> batch = {"image": jnp.ones((2, 8, 8, 3)), "mask": jnp.ones((2, 8, 8), jnp.int32)}
        >>> random_scale((0.5, 2.0))(jax.random.key(0), batch)["image"].shape
        (2, 8, 8, 3)
    """
    least, greatest = scales
    if not 0 < least <= greatest < math.inf:
        raise ValueError(f"scales={scales}; expected (least, greatest) with 0 < least <= greatest.")

    def transform(key: Array, batch: Batch) -> dict[str, Array]:
        samples, height, width = _geometry.extent(batch, "random_scale")
        _geometry.refuse_sizes(batch, "random_scale")
        of_zoom, of_place = jax.random.split(key)
        zoom = jnp.exp(jax.random.uniform(of_zoom, (samples, 1), minval=math.log(least), maxval=math.log(greatest)))
        sides = jnp.asarray([[height, width]], jnp.float32)
        # A point p lands on zoom * p + shift: the window lies inside the image, or the image inside the window.
        shift = jax.random.uniform(of_place, (samples, 2)) * (sides - zoom * sides)
        rows = (jnp.arange(height, dtype=jnp.float32)[None] + 0.5 - shift[:, :1]) / zoom
        columns = (jnp.arange(width, dtype=jnp.float32)[None] + 0.5 - shift[:, 1:]) / zoom
        inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None]
        zooms = jnp.broadcast_to(zoom, shift.shape)
        result = dict(batch)
        for name, array in batch.items():
            kind = kind_of(name)
            if isinstance(kind, Map):
                sample = interpolate if kind.linear else nearest
                drawn = jax.vmap(kind.rescale)(sample(sample(array, rows, 1), columns, 2), zooms)
                pixels = inside.reshape(*inside.shape, *[1] * (array.ndim - 3))
                result[name] = jnp.where(pixels, drawn, kind.surroundings(array, ignore_index))
        return _geometry.move_instances(batch, result, zooms, shift, height, width, "random_scale")

    return transform


def color_jitter(*, brightness: float = 0.0, contrast: float = 0.0, saturation: float = 0.0) -> Transform:
    """Changes brightness, contrast and saturation of each image by random factors, in this order.

    A strength s draws a factor from 1 - s to 1 + s: brightness multiplies the image, contrast its distance from its
    mean luminance (from its mean if there are not exactly 3 channels), saturation each pixel's distance from its
    luminance.
    Values are not clipped, so images may have any range and number of channels; run it before `normalize`.

    Args:
        brightness: strength, 0 to 1.
        contrast: strength, 0 to 1.
        saturation: strength, 0 to 1; ignored unless there are 3 channels.

    Returns:
        The transform.

    Raises:
        ValueError: if a strength is out of its range.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> jitter = color_jitter(brightness=0.2, contrast=0.2)
        >>> jitter(jax.random.key(0), {"image": jnp.ones((2, 4, 4, 5))})["image"].shape
        (2, 4, 4, 5)
    """
    for name, strength in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
        if not 0 <= strength <= 1:
            raise ValueError(f"{name}={strength}; expected a strength of 0 to 1.")

    def jitter(key: Array, image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        strengths = jnp.asarray([[brightness], [contrast], [saturation]], jnp.float32)
        drawn = jax.random.uniform(key, (3, image.shape[0]), minval=-1.0) * strengths + 1.0
        bright, contrasted, saturated = drawn.astype(image.dtype)[:, :, None, None, None]

        def grey(image: Float[Array, "b h w 3"]) -> Float[Array, "b h w 1"]:
            # By slices: XLA's sum over so short an axis is ten times slower on CPU.
            return _LUMA[0] * image[..., :1] + _LUMA[1] * image[..., 1:2] + _LUMA[2] * image[..., 2:]

        if contrast:
            # The mean is that of the image before its brightness changes, so that one pass over the pixels does both.
            mean = channel_means(image)
            mean = grey(mean) if image.shape[-1] == 3 else mean.mean(-1, keepdims=True)
            image = image * (bright * contrasted) + mean * (bright * (1 - contrasted))
        elif brightness:
            image = image * bright
        if saturation and image.shape[-1] == 3:
            image = image * saturated + grey(image) * (1 - saturated)
        return image

    def transform(key: Array, batch: Batch) -> dict[str, Array]:
        _geometry.extent(batch, "color_jitter")
        images = sorted(name for name in batch if isinstance(kind_of(name), Image))
        changed = {name: jitter(jax.random.fold_in(key, index), batch[name]) for index, name in enumerate(images)}
        return {**batch, **changed}

    return transform


def normalize(mean: Sequence[float], std: Sequence[float]) -> Transform:
    """Subtracts the mean and divides by the standard deviation, by channel.

    Args:
        mean: a number per channel, or a single one for all.
        std: likewise; positive.

    Returns:
        The transform, which ignores its key. It raises a ValueError when traced with another number of channels.

    Raises:
        ValueError: if a sequence is empty, or a value of std is not positive.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> float(normalize([0.5], [0.25])(jax.random.key(0), {"image": jnp.ones((1, 2, 2, 3))})["image"][0, 0, 0, 0])
        2.0
    """
    means, stds = [float(value) for value in mean], [float(value) for value in std]
    if not means or not stds or min(stds) <= 0:
        raise ValueError(f"mean={means}, std={stds}; expected a number per channel, those of std positive.")

    def scale(name: str, image: Array) -> Array:
        for argument, values in (("mean", means), ("std", stds)):
            if len(values) not in (1, image.shape[-1]):
                raise ValueError(
                    f"normalize got {argument} with {len(values)} numbers for {name} with {image.shape[-1]} channels; "
                    "expected one per channel, or a single one."
                )
        subtract, divide = (jnp.asarray(values, image.dtype)[None, None, None] for values in (means, stds))
        return (image - subtract) / divide

    def transform(key: Array, batch: Batch) -> dict[str, Array]:
        _geometry.extent(batch, "normalize")
        return {
            name: scale(name, array) if isinstance(kind_of(name), Image) else array for name, array in batch.items()
        }

    return transform
