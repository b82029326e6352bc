"""Prediction for pictures that are too large for one pass: by tiles, exactly or blended."""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from densezoo import metrics
from densezoo.inference import compile
from densezoo.inspect.windows import GlobalOperations
from densezoo.messages import option, shortened
from densezoo.preprocessing import Preprocessing, refuse_path
from densezoo.tiling.blended import blended
from densezoo.tiling.tiles import Picture, exactly, whole
from densezoo.tiling.turns import turns
from densezoo.types import Size

THIN = 8
"""In images with a side below this, some maps have a side of 1, which looks like an axis of another kind."""


class Stages(NamedTuple):
    """How a result is computed from logits.

    Attributes:
        direct: from logits (1, h, w, k) to the result, for a single pass over each pixel.
        averaged: from logits to maps of floats, whose mean over passes is taken.
        finish: from this mean (h, w, ...), on the host, to the result.
        classes: whether the result is a class number.
    """

    direct: Callable[[Any], Any]
    averaged: Callable[[Any], Any]
    finish: Callable[[np.ndarray], np.ndarray]
    classes: bool = False


Reduction = str | Callable[[jax.Array], jax.Array] | Stages
OnTile = Callable[[int, int], Any] | None


def predict_tiled(
    model: nn.Module,
    variables: Any,
    image: Any,
    *,
    max_pixels: int = 1 << 21,
    reduce: Reduction = "logits",
    out: Any = None,
    augment: bool | Sequence[tuple[int, bool]] = False,
    blend: bool = False,
    preprocessing: Preprocessing | None = None,
    on_tile: OnTile = None,
) -> Any:
    """Computes a model's output for a picture of any size by tiles, with the numbers of a single pass.

    Each tile is computed from its part of the picture plus a margin, which is as wide as the receptive field. Zero
    padding happens at the borders of the picture only, and resizes read the positions that they read in the whole
    picture. So the result equals that of `model.apply` up to rounding, for every height and width. All tiles share one
    compiled program. Memory depends on `max_pixels` and not on the size of the picture, apart from the result.

    The margins are computed again for each tile. With a receptive field of r pixels and tiles of t pixels, the cost is
    about (1 + r / t)**2 times that of a single pass, so `max_pixels` should be as large as memory allows.

    Exact tiles need a model that reads a limited neighbourhood. Global pooling, attention, squeeze-and-excitation, and
    group and instance norms read the whole picture. For a model that has them, `blend=True` computes overlapping tiles
    as if they were pictures, half a tile apart, and blends their outputs with Gaussian weights, as nnU-Net does. This
    is an approximation. It keeps the maps of one row of tiles: tile height x picture width x channels floats.

    Every call compiles. `Predictor.tiled` keeps the programs for pictures of the same size.

    Args:
        model: a model that maps images (b, h, w, c) to maps of the same height and width.
        variables: the model's variables.
        image: (height, width, channels), normalised for the model. An array, or anything with `shape` that returns
            arrays for slices, such as `np.memmap` or `data.open_tiff(path)`.
        max_pixels: limit of the number of pixels that are computed at once, margin included. A picture with fewer is
            computed in one pass.
        reduce: what is kept of the logits: "logits" (everything), "probabilities" (softmax, or sigmoid for one
            channel) or "classes" (the most likely class of each pixel, int32). Or a function of logits (1, h, w, k)
            that treats every pixel separately.
        out: where the result is written, by `out[rows, columns] = tile`, such as an `np.memmap`, or
            `metrics.TiledCounts` to compare with labels. Its shape and dtype are checked before anything is computed.
            None for a new array.
        augment: averages the probabilities of the turned and mirrored picture: True for all eight ways. Or a sequence
            of (quarter turns, mirrored), such as `((0, False), (0, True))`. Logits and floats that a function returns
            are averaged as they are.
        blend: whether to blend overlapping tiles if the model has global operations.
        preprocessing: prepares and normalises the pixels of each tile, if `image` has the values of a file.
        on_tile: called after each tile with the number of pixels that are computed, and of all pixels, for a progress
            bar.

    Returns:
        `out`, or an array: (height, width, k), or (height, width) for "classes".

    Raises:
        ValueError: if `max_pixels` is less than the receptive field needs; if the model has global operations, which
            are named; if the preprocessing resizes pictures; if `out` has another shape, or a dtype that cannot hold
            the result; or if shapes or options are invalid.
        TypeError: if the image has integers and there is no preprocessing, or is a path.

    Example:
        >>> import jax, jax.numpy as jnp, numpy as np
        >>> import densezoo as dz
        >>> model = dz.create_model("unet", dz.PlainEncoder((4, 8)), num_classes=3)
        >>> image = np.random.default_rng(0).random((150, 201, 3), np.float32)
        >>> variables = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
        >>> logits = predict_tiled(model, variables, image, max_pixels=10_000)
        >>> bool(np.allclose(logits, model.apply(variables, image[None])[0], atol=1e-5))
        True
        >>> predict_tiled(model, variables, image, max_pixels=10_000, reduce="classes").shape
        (150, 201)

    References:
        Isensee et al., nnU-Net, 2021 (for `blend`). https://arxiv.org/abs/1904.08128
    """
    refuse_path(image)
    tiling = Tiling(
        model,
        variables,
        tuple(getattr(image, "shape", ())),
        max_pixels=max_pixels,
        reduce=reduce,
        augment=augment,
        blend=blend,
        preprocessing=preprocessing,
    )
    return tiling(image, out=out, on_tile=on_tile)


class Tiling:
    """Computes pictures of one shape by tiles, with programs that are compiled once. Arguments as of `predict_tiled`.

    Attributes:
        result: shape and dtype of the result.
    """

    def __init__(
        self,
        model: nn.Module,
        variables: Any,
        shape: tuple[int, ...],
        *,
        max_pixels: int,
        reduce: Reduction,
        augment: bool | Sequence[tuple[int, bool]],
        blend: bool,
        preprocessing: Preprocessing | None,
    ):
        size = _checked(shape, max_pixels, preprocessing)
        infer, normalize = compile(model, variables), None if preprocessing is None else preprocessing.normalize()

        def outputs(images: jax.Array) -> jax.Array:
            if normalize is not None:
                images = normalize(None, {"image": images})["image"]  # which needs no key
            return infer.run(images)

        stages, ways, self._preprocessing = _stages(reduce), turns(augment), preprocessing
        self._shape, average = shape, len(ways) > 1
        activate = stages.averaged if average else stages.direct
        logits = _logits(outputs, (1, *shape), type(model).__name__)
        try:
            if math.prod(size) <= max_pixels:
                self._tiles = whole(outputs, ways, activate)
            else:
                self._tiles = exactly(outputs, shape, max_pixels, ways, activate)
        except GlobalOperations as error:
            if not blend:
                raise ValueError(_reason(type(model).__name__, error.names, size)) from error
            average, activate = True, stages.averaged
            self._tiles = blended(outputs, size, max_pixels, ways, activate)
        found: Any = jax.eval_shape(activate, logits)
        if getattr(found, "shape", ())[:3] != (1, *size):
            raise ValueError(f"{option('reduce')} must return (1, {size[0]}, {size[1]}, ...) for logits {logits.shape}")
        if average and not jnp.issubdtype(found.dtype, jnp.floating):
            raise ValueError(
                f"{option('reduce')} returns {found.dtype}, and only floats can be averaged: pass"
                f" {option('reduce', 'classes')} or {option('reduce', 'probabilities')}, or omit"
                f" {option('augment')} and {option('blend')}"
            )
        self._finish = stages.finish if average else lambda tile: tile
        pixel = self._finish(np.zeros((1, 1, *found.shape[3:]), np.float32 if average else found.dtype))
        self.result = jax.ShapeDtypeStruct((*size, *pixel.shape[2:]), pixel.dtype)
        self._largest = max(logits.shape[-1], 2) - 1 if stages.classes else None

    def __call__(self, image: Any, *, out: Any = None, on_tile: OnTile = None) -> Any:
        """The result for a picture of this shape."""
        if out is not None:
            self._check_out(out)
        done, total = 0, math.prod(self._shape[:2])
        for row, column, tile in self._tiles(Picture(image, self._preprocessing)):
            tile = self._finish(tile)
            if out is None:
                out = np.empty(self.result.shape, tile.dtype)
            self._check_range(out, tile)
            out[row : row + tile.shape[0], column : column + tile.shape[1]] = tile
            done += math.prod(tile.shape[:2])
            if on_tile is not None:
                on_tile(done, total)
        return out

    def _check_out(self, out: Any) -> None:
        """Refuses an `out` that cannot hold the result, before anything is computed."""
        shape, dtype = getattr(out, "shape", None), getattr(out, "dtype", None)
        if shape is not None and tuple(shape) != self.result.shape:
            raise ValueError(
                f"{option('out')} has shape {tuple(shape)}; expected that of the result, {self.result.shape}"
            )
        if isinstance(out, jax.Array) or (isinstance(out, np.ndarray) and not out.flags.writeable):
            raise ValueError(f"{option('out')} cannot be written: pass a NumPy array, or np.memmap of mode r+ or w+")
        if dtype is None or np.dtype(dtype).kind not in "iub":
            return
        if jnp.issubdtype(self.result.dtype, jnp.floating):
            raise ValueError(f"{option('out')} has dtype {dtype}, which cannot hold the result's {self.result.dtype}")
        if self._largest is not None and not _holds(dtype, 0, self._largest):
            raise ValueError(
                f"{option('out')} has dtype {dtype}, which cannot hold {self._largest + 1} classes: use"
                f" {np.min_scalar_type(self._largest)}"
            )

    def _check_range(self, out: Any, tile: np.ndarray) -> None:
        """Refuses whole numbers that would overflow: NumPy would write others."""
        dtype = getattr(out, "dtype", None)
        if self._largest is not None or dtype is None or {np.dtype(dtype).kind, tile.dtype.kind} - set("iu"):
            return
        if not np.can_cast(tile.dtype, dtype) and not _holds(dtype, tile.min(), tile.max()):
            raise ValueError(f"{option('out')} has dtype {dtype}, and the result has numbers up to {tile.max()}")


def _reason(model: str, names: Sequence[str], size: Size) -> str:
    """Why a model cannot be computed exactly by tiles."""
    what = shortened(names, ", ")
    if min(size) < THIN:
        reason = f"because rows and columns cannot be told apart in an image of {size[0]}x{size[1]} pixels, in {what}"
    else:
        reason = f"because parts of it read the whole image: {what}"
    return (
        f"{model} cannot be computed exactly by tiles, {reason}. {option('blend', True)} blends overlapping tiles,"
        f" an approximation; {option('max_pixels')} of at least {math.prod(size)} computes the image in one pass"
    )


def _holds(dtype: Any, least: Any, largest: Any) -> bool:
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return least >= 0 and largest <= 1
    return bool(np.iinfo(dtype).min <= least and largest <= np.iinfo(dtype).max)


def _checked(shape: tuple[int, ...], max_pixels: int, preprocessing: Preprocessing | None) -> Size:
    """The size of a picture of this shape."""
    if len(shape) != 3 or 0 in shape:
        raise ValueError(f"expected one image of shape (height, width, channels), got shape {shape}")
    if max_pixels < 1:
        raise ValueError(f"{option('max_pixels')} must be at least 1, got {max_pixels}")
    if preprocessing is not None and preprocessing.resizes:
        raise ValueError("the preprocessing resizes pictures, so that tiles would differ from the whole picture")
    if preprocessing is not None and preprocessing.channels != shape[2]:
        raise ValueError(f"expected an image of shape (h, w, {preprocessing.channels}), got shape {shape}")
    return shape[0], shape[1]


def _logits(outputs: Callable[[Any], Any], shape: tuple[int, ...], name: str) -> jax.ShapeDtypeStruct:
    """Shape and dtype of a model's output, which must have the images' height and width."""
    found: Any = jax.eval_shape(outputs, jax.ShapeDtypeStruct(shape, jnp.float32))
    if not isinstance(found, jax.ShapeDtypeStruct) or len(found.shape) != 4 or found.shape[:3] != shape[:3]:
        shapes = jax.tree.map(lambda x: x.shape, found)
        raise ValueError(
            f"{name} returns {shapes} for images of shape {shape}; tiles need one map of the images' height and width,"
            f" {(*shape[:3], 'k')}"
        )
    return found


def _stages(reduce: Reduction) -> Stages:
    if isinstance(reduce, Stages):
        return reduce
    if callable(reduce):
        return Stages(reduce, reduce, _same)
    if reduce not in _REDUCTIONS:
        raise ValueError(
            f'{option("reduce")} must be "logits", "probabilities", "classes" or a function; got {reduce!r}'
        )
    return _REDUCTIONS[reduce]


def _same(x: Any) -> Any:
    return x


def _probabilities(logits: jax.Array) -> jax.Array:
    logits = logits.astype(jnp.float32)
    return jax.nn.sigmoid(logits) if logits.shape[-1] == 1 else jax.nn.softmax(logits)


def _classes(probabilities: np.ndarray) -> np.ndarray:
    if probabilities.shape[-1] == 1:
        return (probabilities[..., 0] >= 0.5).astype(np.int32)
    return probabilities.argmax(-1).astype(np.int32)


_REDUCTIONS = {
    "logits": Stages(_same, _same, _same),
    "probabilities": Stages(_probabilities, _probabilities, _same),
    "classes": Stages(metrics.predict, _probabilities, _classes, classes=True),
}
